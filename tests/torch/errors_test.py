"""What goes wrong on one rank is an exception on the others, in time, and names the rank."""

import os
import signal
import time
import unittest
from datetime import timedelta

import ranks
import torch
import torch.distributed as dist
import ringfold_torch

SHORT = 3  # seconds: the deadline of groups in which something must time out
LONG = 120  # and of all others: an error that waits for this one says "timeout", and nothing here may


def failure(call):
    """The Error that `call` ends with."""
    try:
        call()
    except ringfold_torch.Error as error:
        assert isinstance(error, RuntimeError)
        return error
    raise AssertionError("no error")


def say(what, rank):
    """For others to hear, whatever becomes of the group."""
    dist.distributed_c10d._get_default_store().set(f"{what} {rank}", str(time.monotonic()))


def hear(what, of):
    """Waits for what those ranks say; the times at which they said so."""
    store = dist.distributed_c10d._get_default_store()
    store.wait([f"{what} {rank}" for rank in of])
    return [float(store.get(f"{what} {rank}")) for rank in of]


def wait_and_see(rank, size):
    """Calls until one fails, as a training loop would."""
    x = torch.ones(1000)
    while True:
        dist.all_reduce(x)


def killed(rank, size):
    if rank == 1:
        for _ in range(3):
            dist.all_reduce(torch.ones(1000))
        os.kill(os.getpid(), signal.SIGKILL)
    error = failure(lambda: wait_and_see(rank, size))
    assert error.rank == 1 and error.code == "peer lost", vars(error)
    assert "rank 1" in str(error) and error.host in str(error), error
    again = failure(lambda: dist.barrier())  # and so does every later call
    assert again.rank == 1, vars(again)


def stopped(rank, size):
    if rank == 1:
        dist.all_reduce(torch.ones(1000))
        os.kill(os.getpid(), signal.SIGSTOP)
    begin = time.monotonic()
    error = failure(lambda: wait_and_see(rank, size))
    assert error.rank == 1 and time.monotonic() - begin > 0.9 * SHORT, vars(error)


def raises(rank, size):
    """An exception that ends the program reaches the others with its text."""
    if rank == 1:
        dist.all_reduce(torch.ones(1000))
        import sys
        sys.excepthook(ZeroDivisionError, ZeroDivisionError("the model has no parameters"), None)
        return
    error = failure(lambda: wait_and_see(rank, size))
    assert error.rank == 1 and error.code == "aborted", vars(error)
    assert "ZeroDivisionError: the model has no parameters" in str(error), error


def leave_together(rank, size):
    """destroy_process_group() waits for the others, if they come soon: they may still hear from this rank."""
    dist.all_reduce(torch.ones(3))
    store = dist.distributed_c10d._get_default_store()
    if rank == 1:
        hear("leaves", set(range(size)) - {1})
        time.sleep(0.3)
    say("leaves", rank)
    begin = time.monotonic()
    dist.destroy_process_group()
    end = time.monotonic()
    late = float(store.get("leaves 1"))  # waits for it
    assert rank == 1 or end > late or late - begin > 4.5, (begin, end, late)  # for others it waits 5 s
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # for the end of the test


def leaves(rank, size):
    if rank == 1:
        dist.all_reduce(torch.ones(1000))
        dist.destroy_process_group()
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # for the end of the test
        return
    error = failure(lambda: wait_and_see(rank, size))
    assert error.rank == 1 and error.code == "peer lost", error


def mismatched(call_of):
    def play(rank, size):
        error = failure(lambda: call_of(rank))
        assert error.code == "mismatch", vars(error)
        if size > 2:
            assert error.rank == 1, vars(error)
    return play


def one_skips_a_call(rank, size):
    if rank != 1:
        error = failure(lambda: dist.all_reduce(torch.ones(3)))
        assert error.rank == 1 and error.code == "timeout", vars(error)
        assert "has not called all_reduce" in str(error), error
        say("gave up", rank)
    else:
        hear("gave up", set(range(size)) - {1})
        failure(lambda: dist.barrier())


def deadline_of_a_call(rank, size):
    """A wait that is given up leaves the call alone."""
    x = torch.ones(4)
    if rank == 1:
        hear("gave up", [0])
    work = dist.all_reduce(x, async_op=True)
    if rank == 0:
        error = failure(lambda: work.wait(timedelta(seconds=0.2)))
        assert error.code == "timeout", vars(error)
        say("gave up", rank)
    work.wait()
    assert x[0] == size


def aborted(rank, size):
    if rank == 1:
        dist.all_reduce(torch.ones(1000))
        ringfold_torch.abort(cause="loss is not finite")
        error = failure(lambda: dist.barrier())
    else:
        error = failure(lambda: wait_and_see(rank, size))
    assert error.rank == 1 and "loss is not finite" in str(error), vars(error)


def one_group_only(rank, size):
    """The end of one group is not that of another."""
    other = dist.new_group(range(size))
    if rank == 1:
        ringfold_torch.abort(other)
    failure(lambda: dist.barrier(group=other))
    x = torch.ones(3)
    dist.all_reduce(x)
    assert x[0] == size


def in_futures(rank, size):
    """Also a future of a call that fails carries the error, and callbacks run."""
    if rank == 1:
        dist.all_reduce(torch.ones(1000))
        os.kill(os.getpid(), signal.SIGKILL)
    dist.all_reduce(torch.ones(1000))
    work = dist.all_reduce(torch.ones(10), async_op=True)
    seen = work.get_future().then(lambda done: f"{done.wait}")
    for wait in (lambda: work.get_future().wait(), lambda: work.wait()):
        try:
            wait()
        except RuntimeError as error:
            assert "rank 1" in str(error), error
        else:
            raise AssertionError("no error")
    assert work.is_completed() and not work.is_success() and seen.wait()


def in_training(rank, size):
    """DistributedDataParallel raises what the backend found."""
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(100, 100))
    try:
        for step in range(1000):
            if rank == 1 and step == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            model(torch.ones(4, 100)).sum().backward()
    except RuntimeError as error:
        assert "rank 1" in str(error), error
    else:
        raise AssertionError("no error")


def bad_arguments(rank, size):
    """Refused at once, before the others are involved: they go on."""
    meta = torch.ones(3, device="meta")  # which PyTorch 2.x takes a second for, the first time

    def broadcast(tensor):  # without PyTorch 2.x before it, which refuses some of these by itself
        ringfold_torch.group_of().broadcast([tensor], dist.BroadcastOptions())

    cases = {
        "a tensor is on meta: Ringfold moves tensors in the memory of CPUs and of CUDA devices":
            lambda: ringfold_torch.group_of().allgather_into_tensor_coalesced([torch.ones(3 * size)],
                                                                              [meta]),
        "BAND of Float": lambda: dist.all_reduce(torch.ones(3), op=dist.ReduceOp.BAND),
        "AVG of Bool": lambda: dist.all_reduce(torch.ones(3).bool(), op=dist.ReduceOp.AVG),
        "quantized": lambda: broadcast(torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)),
        "an output of 3 elements for an input of 3": lambda: dist.all_gather_into_tensor(torch.ones(3), torch.ones(3)),
        "an input of 4 elements for an output of 4": lambda: dist.reduce_scatter_tensor(torch.ones(4), torch.ones(4)),
        "does not divide among": lambda: dist.all_to_all_single(torch.ones(2 * size + 1), torch.ones(2 * size + 1)),
        "split sizes with sum": lambda: dist.all_to_all_single(torch.ones(size), torch.ones(size), [1] * size, [2] * size),
        "layout Sparse": lambda: broadcast(torch.eye(3).to_sparse()),
        "sparse tensors have SUM only": lambda: dist.all_reduce(torch.eye(3).to_sparse(), op=dist.ReduceOp.MAX),
        "a list of": lambda: dist.all_gather([torch.ones(3)] * (size + 1), torch.ones(3)),
        "is not valid": lambda: dist.new_group(range(size), pg_options=ringfold_torch.Options(codec="int7")),
    }
    for text, call in cases.items():
        error = failure(call)
        assert text in str(error) or text == "is not valid" and "int7" in str(error), (text, error)
        assert error.code == "invalid argument", error.code
    try:
        dist.new_group(range(size), pg_options={"codec": "int8"})
    except TypeError as error:
        assert "ringfold_torch.Options" in str(error)
    else:
        raise AssertionError("a dictionary was taken for options")
    x = torch.ones(3)
    dist.all_reduce(x)
    assert x[0] == size


def monitored(rank, size):
    """monitored_barrier names who is missing, and leaves the group usable."""
    ringfold_torch.monitored_barrier(timeout=timedelta(seconds=LONG))
    late = set(range(size)) - {0, 2}
    if rank not in late:
        error = failure(lambda: ringfold_torch.monitored_barrier(timeout=timedelta(seconds=0.5), wait_all_ranks=True))
        names = ", ".join(map(str, sorted(late)))
        assert f"Rank{'s' if len(late) > 1 else ''} {names} did not come" in str(error), error
        say("gave up", rank)
    else:
        hear("gave up", set(range(size)) - late)
        failure(lambda: ringfold_torch.monitored_barrier(timeout=timedelta(seconds=0.5), wait_all_ranks=True))
    x = torch.ones(3)
    dist.all_reduce(x)
    assert x[0] == size


class Errors(unittest.TestCase):
    def test_a_rank_that_does_not_come_is_named(self):
        def nothing(rank, size):
            raise AssertionError("a group without rank 1")
        with self.assertRaises(AssertionError) as raised:
            ranks.play(3, nothing, timeout=2, absent=(1,))
        self.assertRegex(str(raised.exception),
                         r"rank 1 of 3 has not come to torch\.distributed's store within (2|1\.\d*|0\.\d*) s")


def _add(name, function, size, doomed=(), timeout=LONG):
    setattr(Errors, f"test_{name}_{size}_ranks",
            lambda self: ranks.play(size, function, timeout=timeout, doomed=doomed))


for size in (2, 4):
    for function in (killed, in_futures, in_training):
        _add(function.__name__, function, size, doomed=(1,))
    for function in (raises, leave_together, leaves, deadline_of_a_call, aborted, one_group_only, bad_arguments, monitored):
        _add(function.__name__, function, size)
    _add("one_skips_a_call", one_skips_a_call, size, timeout=SHORT)
    for name, call in {
        "shape": lambda rank: dist.all_reduce(torch.ones(10 + (rank == 1))),
        "dtype": lambda rank: dist.all_reduce(torch.ones(10, dtype=torch.float64 if rank == 1 else torch.float32)),
        "operation": lambda rank: dist.all_reduce(torch.ones(10), op=dist.ReduceOp.MAX if rank == 1 else dist.ReduceOp.SUM),
        "collective": lambda rank: dist.barrier() if rank == 1 else dist.all_reduce(torch.ones(10)),
    }.items():
        _add("another_" + name, mismatched(call), size)
_add("stopped", stopped, 3, doomed=(1,), timeout=SHORT)

if __name__ == "__main__":
    ranks.main()
