#!/usr/bin/python3
"""Parameter averaging: every rank fits the same line to data of its own, and now and then all take the mean of their parameters.

    ringfold run -n 4 -- /usr/bin/python3 averaging.py
"""

import numpy as np

import ringfold

ROUNDS, LOCAL_STEPS, SAMPLES, RATE = 40, 10, 256, 0.1
TRUE = np.array([3.0, -2.0, 0.5])


def main() -> None:
    with ringfold.init() as comm:
        random = np.random.default_rng(comm.rank)  # each rank sees other data
        x = random.normal(size=(SAMPLES, TRUE.size))
        y = x @ TRUE + random.normal(scale=0.1, size=SAMPLES)
        parameters = np.zeros(TRUE.size)
        for _ in range(ROUNDS):
            for _ in range(LOCAL_STEPS):
                parameters -= RATE * (x.T @ (x @ parameters - y)) / SAMPLES
            comm.all_reduce(parameters, op="avg")  # in place
        everybody = comm.all_gather(parameters)
        if comm.rank == 0:
            same = bool((everybody == parameters).all())
            error = float(np.abs(parameters - TRUE).max())
            print(f"{comm.size} ranks agree: {same}; parameters {parameters.round(2).tolist()}, error {error:.3f}")


if __name__ == "__main__":
    try:
        main()
    except ringfold.Error as error:
        raise SystemExit(f"{error} (rank {error.rank}, host {error.host}, operation {error.operation})")
