"""The Python package in processes that `ringfold run` starts: the example, a rank that is killed, one that raises, Ctrl-C."""

import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest

TOOL = os.environ["RINGFOLD_PROGRAM"]
EXAMPLES = os.environ["RINGFOLD_EXAMPLES"]

PRELUDE = "import os, signal, sys, time\nimport numpy as np\nimport ringfold\n"


def ranks(n, program, *options):
    """`program`, a file or text, on n ranks."""
    arguments = [program] if program.endswith(".py") else ["-c", PRELUDE + program]
    return subprocess.run([TOOL, "run", "-n", str(n), *options, "--", sys.executable, *arguments], capture_output=True, text=True, timeout=90)


def said(job):
    """The lines of all ranks without the prefixes, which keep the lines of several ranks whole."""
    return [line.partition("] ")[2] for line in job.stdout.splitlines()]


class Processes(unittest.TestCase):
    def test_the_example_of_parameter_averaging_agrees(self):
        job = ranks(4, os.path.join(EXAMPLES, "averaging.py"))
        self.assertEqual((job.returncode, job.stderr), (0, ""))
        self.assertIn("4 ranks agree: True", job.stdout)
        self.assertLess(float(job.stdout.split()[-1]), 0.05)

    def test_a_killed_rank_is_named_on_all_others_and_they_go_on(self):
        job = ranks(
            4,
            """
with ringfold.init(timeout=30) as comm:
    try:
        comm.barrier()  # which others may still be in when rank 2 has left it
        if comm.rank == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        while True:
            comm.all_reduce(np.ones(1000, np.float32))
    except ringfold.PeerLostError as error:
        rank = error.rank
    with comm.reconfigure() as survivors:
        total = survivors.all_reduce(np.ones(1))
        print(f"lost {rank}, {survivors.size} left, sum {total[0]:g}")
""",
            "--keep-going",
        )
        self.assertEqual(said(job), ["lost 2, 3 left, sum 3"] * 3, job.stderr)

    def test_a_killed_rank_is_started_again_and_the_others_take_it_in(self):
        with tempfile.TemporaryDirectory() as folder:
            job = ranks(
                3,
                f"folder = {folder!r}\n"
                """
while "RINGFOLD_RESTARTED" in os.environ and len(os.listdir(folder)) < 2:
    time.sleep(0.01)  # until both others go on without this one
comm = ringfold.init(timeout=60, open=True)
cause = "somebody new"
while comm.epoch == 0 or comm.size < 3:
    try:
        comm.all_reduce(np.ones(10))
        if comm.epoch == 0 and comm.rank == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if comm.size == 2:
            open(os.path.join(folder, str(comm.job_rank)), "w").close()
        if comm.rank == 0 and comm.waiting():
            comm.abort(f"{comm.waiting()} came back")
    except ringfold.Error as error:
        cause = error.cause
        comm = comm.reconfigure()
with comm:
    print(f"{comm.job_rank} is rank {comm.rank} of {comm.all_reduce(np.ones(1))[0]:g} for", cause)
""",
                "--restarts",
                "1",
            )
        self.assertEqual(
            sorted(said(job)),
            ["0 is rank 2 of 3 for somebody new"] + [f"{r} is rank {r - 1} of 3 for asked to abort: [0] came back" for r in (1, 2)],
            job.stderr,
        )
        self.assertEqual(job.returncode, 0, job.stderr)

    def test_an_exception_on_one_rank_reaches_the_others_as_one_that_names_it(self):
        job = ranks(
            3,
            """
try:
    with ringfold.init(timeout=30) as comm:
        comm.barrier()
        if comm.rank == 1:
            for other in 0, 2:  # nobody is in the barrier any more
                comm.recv(np.zeros(1), other)
            raise KeyError("my own fault")
        comm.send(np.ones(1), 1)
        comm.all_reduce(np.ones(10))
except ringfold.Error as error:
    print(type(error).__name__, error.rank, error.operation, bool(error.host and error.cause))
""",
            "--keep-going",
        )
        self.assertEqual(said(job), ["PeerLostError 1 all_reduce True"] * 2, job.stderr)
        self.assertIn("my own fault", job.stderr)

    def test_arrays_travel_over_tcp_too(self):
        job = ranks(
            2,
            """
with ringfold.init(transport="tcp", timeout=30) as comm:
    x = comm.all_reduce(np.arange(100000, dtype=np.float64))
    print(comm.transport_to(1 - comm.rank), bool((x == 2 * np.arange(100000)).all()))
""",
        )
        self.assertEqual(said(job), ["tcp True"] * 2, job.stderr)

    def test_a_keyboard_interrupt_ends_a_wait(self):
        program = PRELUDE + "comm, other = ringfold.init_local(2)\nprint('waiting', flush=True)\ncomm.recv(np.ones(1), 1)\n"
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            self.assertEqual(process.stdout.readline(), "waiting\n")
            time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=30)
            self.assertIn("KeyboardInterrupt", errors)


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    unittest.main(verbosity=2)
