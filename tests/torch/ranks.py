"""Ranks as processes, for the tests of the torch.distributed backend, and a runner whose output is counted like
GoogleTest's."""

import multiprocessing
import os
import sys
import tempfile
import time
import traceback
import unittest
from datetime import timedelta

os.environ.setdefault("OMP_NUM_THREADS", "1")       # ranks share the processors; and a process with
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # threads of its own could not be forked

try:
    import torch
    import torch.distributed as dist
    import ringfold_torch
except ImportError as missing:
    print(f"SKIPPED: {missing}; install python3-torch and pybind11-dev, and build with -Dtorch=enabled")
    sys.exit(77)


def _rank(play, rank, size, folder, backend, timeout, options, pipe):
    try:
        store = dist.FileStore(os.path.join(folder, "store"), size)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=timeout),
                                pg_options=options)
        result = play(rank, size)
        dist.destroy_process_group()
        pipe.send((True, result))
    except BaseException:
        pipe.send((False, traceback.format_exc()))


def play(size, function, backend="ringfold", timeout=60, options=None, doomed=(), absent=()):
    """What function(rank, size) returns on each of `size` ranks in a process group. Fails if one of them raises, or
    dies, unless it is `doomed`: those give None. `absent` ranks are not started."""
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(size):
            here, there = context.Pipe(duplex=False)
            process = context.Process(target=_rank, args=(function, rank, size, folder, backend, timeout, options, there))
            if rank not in absent:
                process.start()
            there.close()
            pipes.append(here)
            processes.append(process)
        results, errors = [], []
        until = time.monotonic() + timeout + 30
        for rank, pipe in enumerate(pipes):
            good, result = False, "gave no result in time"
            try:
                if rank in doomed:  # it may be stopped for ever
                    results.append(None)
                    continue
                if pipe.poll(max(until - time.monotonic(), 0)):
                    good, result = pipe.recv()
            except EOFError:
                result = "died"
            if not good and rank not in doomed and rank not in absent:
                errors.append(f"rank {rank}: {result}")
            results.append(result if good else None)
        for rank, process in enumerate(processes):
            if rank in absent:
                continue
            process.join(0 if errors or rank in doomed else 20)
            if process.is_alive():
                if not errors and rank not in doomed:
                    errors.append(f"rank {rank} did not end")
                process.kill()
                process.join()
        if errors:
            raise AssertionError("\n".join(errors))
        return results


class _Result(unittest.TestResult):
    def startTest(self, test):
        super().startTest(test)
        self._begin, self._bad = time.monotonic(), False
        print(f"[ RUN      ] {self._name(test)}", flush=True)

    @staticmethod
    def _name(test):
        return ".".join(test.id().split(".")[-2:])

    def _done(self, test, how):
        print(f"[ {how:>8} ] {self._name(test)} ({int(1000 * (time.monotonic() - self._begin))} ms)", flush=True)

    def addSuccess(self, test):
        self._done(test, "OK")

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        print(f"SKIPPED: {reason}")
        self._done(test, "SKIPPED ")

    def addError(self, test, error):
        super().addError(test, error)
        print("".join(traceback.format_exception(*error)))
        self._done(test, "FAILED ")

    addFailure = addError

    def addSubTest(self, test, subtest, error):
        if error is not None:
            print(subtest)
            self.addError(test, error)


def main():
    """Runs the tests of the calling program; arguments: names of some."""
    loader = unittest.TestLoader()
    module = sys.modules["__main__"]
    suite = loader.loadTestsFromNames(sys.argv[1:], module) if sys.argv[1:] else loader.loadTestsFromModule(module)
    result = _Result()
    suite.run(result)
    print(f"{result.testsRun} tests, {len(result.errors)} failed")
    sys.exit(0 if result.wasSuccessful() and result.testsRun > 0 else 1)
