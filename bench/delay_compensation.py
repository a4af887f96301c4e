#!/usr/bin/env python3
"""What could make up for late gradients? Asynchronous SGD in one process, an MLP on Fashion-MNIST as `ringfold train` trains it.

    bench/delay_compensation.py WORKERS,WAY,STRENGTH[,SEED]...        (1,plain,0 is sequential)

N workers push gradients in an order drawn from the seed; each was computed at the parameters that its worker had read, some N - 1 updates before.
With d what the parameters have moved by since, and g the gradient, what is applied is
    plain     g
    adaptive  g + STRENGTH g g d / sqrt(running mean of g g)       ringfold's --delay-compensation-adaptive
    squares   g + STRENGTH s d, s the mean over the samples of their gradients' squares: the Fisher matrix's diagonal
    product   g + STRENGTH G d, G the whole Gauss-Newton matrix of the worker's samples, never formed
Prints the loss over the last epoch and the test accuracy. Needs PyTorch, and Debian's dataset-fashion-mnist.
"""
import gzip
import math
import sys

import numpy as np
import torch

FOLDER = "/usr/share/datasets/fashion-mnist/"
WIDTHS = [784, 256, 128, 10]
LAYERS = len(WIDTHS) - 1
SAMPLES, BATCH, EPOCHS, LR, WARM_UP = 11520, 32, 3, 0.1, 0.15


def images(name):
    raw = np.frombuffer(gzip.open(FOLDER + name).read(), np.uint8, offset=16)
    return torch.from_numpy((raw.reshape(-1, 784).astype(np.float32) / 255 - 0.2860) / 0.3530)


def labels(name):
    return torch.from_numpy(np.frombuffer(gzip.open(FOLDER + name).read(), np.uint8, offset=8).astype(np.int64))


def forward(w, x):
    """What goes into each layer, and the logits."""
    inputs = [x]
    for k in range(LAYERS):
        z = inputs[-1] @ w[2 * k].T + w[2 * k + 1]
        inputs.append(torch.relu(z) if k + 1 < LAYERS else z)
    return inputs


def backward(w, inputs, d, squares=False):
    """From the samples' gradients of the logits: the mean gradient, and the mean of the samples' squares if asked."""
    n, mean, square = len(d), [None] * 2 * LAYERS, [None] * 2 * LAYERS
    for k in reversed(range(LAYERS)):
        mean[2 * k], mean[2 * k + 1] = d.T @ inputs[k] / n, d.mean(0)
        if squares:
            square[2 * k], square[2 * k + 1] = (d * d).T @ (inputs[k] * inputs[k]) / n, (d * d).mean(0)
        if k > 0:
            d = (d @ w[2 * k]) * (inputs[k] > 0)
    return mean, square


def gauss_newton_product(w, moved, x):
    inputs = forward(w, x)
    change = torch.zeros_like(x)
    for k in range(LAYERS):
        change = change @ w[2 * k].T + inputs[k] @ moved[2 * k].T + moved[2 * k + 1]
        if k + 1 < LAYERS:
            change = change * (inputs[k + 1] > 0)
    p = torch.softmax(inputs[-1], 1)
    return backward(w, inputs, p * change - p * (p * change).sum(1, keepdim=True))[0]


def run(workers, way, strength, seed):
    x, y = images("train-images-idx3-ubyte.gz")[:SAMPLES], labels("train-labels-idx1-ubyte.gz")[:SAMPLES]
    draw = torch.Generator().manual_seed(1)
    w = []
    for i, o in zip(WIDTHS, WIDTHS[1:]):
        w += [(torch.rand(o, i, generator=draw) * 2 - 1) * math.sqrt(6 / i), torch.zeros(o)]
    mean_square = [torch.zeros_like(p) for p in w]
    steps = SAMPLES // BATCH
    batches = [b for e in range(EPOCHS) for b in np.random.RandomState(7 + e).permutation(SAMPLES).reshape(steps, BATCH)]
    order, losses, begun, done = np.random.RandomState(100 + seed), [], 0, 0

    def begin():
        nonlocal begun
        if begun == len(batches):
            return None
        b = torch.from_numpy(batches[begun])
        begun += 1
        inputs = forward(w, x[b])
        p = torch.log_softmax(inputs[-1], 1)
        d = p.exp()
        d[torch.arange(BATCH), y[b]] -= 1
        return [v.clone() for v in w], b, -p[torch.arange(BATCH), y[b]].mean().item(), *backward(w, inputs, d, way == "squares")

    busy = [begin() for _ in range(workers)]
    while any(busy):
        ready = [i for i in range(workers) if busy[i]]
        i = ready[order.randint(len(ready))]
        read, b, loss, g, s = busy[i]
        moved = [now - then for now, then in zip(w, read)]
        if way == "adaptive":
            for m, v in zip(mean_square, g):
                m.mul_(0.95).add_(v * v, alpha=0.05)
            g = [v + strength / torch.sqrt(m + 1e-7) * v * v * d for v, m, d in zip(g, mean_square, moved)]
        elif way == "squares":
            g = [v + strength * q * d for v, q, d in zip(g, s, moved)]
        elif way == "product":
            g = [v + strength * q for v, q in zip(g, gauss_newton_product(read, moved, x[b]))]
        at = done / len(batches)
        lr = LR * (0.1 + 0.9 * at / WARM_UP if at < WARM_UP else 0.5 * (1 + math.cos(math.pi * (at - WARM_UP) / (1 - WARM_UP))))
        for p, v in zip(w, g):
            p.sub_(v, alpha=lr)
        if done >= (EPOCHS - 1) * steps:
            losses.append(loss)
        done += 1
        busy[i] = begin()
    guess = forward(w, images("t10k-images-idx3-ubyte.gz"))[-1].argmax(1)
    return np.mean(losses), (guess == labels("t10k-labels-idx1-ubyte.gz")).float().mean().item()


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    torch.set_num_threads(1)
    for setting in sys.argv[1:]:
        workers, way, strength, *seed = setting.split(",")
        if way not in ("plain", "adaptive", "squares", "product"):
            sys.exit(f"{setting}: {way} is none of plain, adaptive, squares, product")
        loss, accuracy = run(int(workers), way, float(strength), int(seed[0]) if seed else 1)
        print(f"{setting}: loss {loss:.4f}, accuracy {accuracy:.4f}", flush=True)
