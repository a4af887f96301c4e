"""PyTorch's own tests of distributed operations (torch.testing._internal.distributed.distributed_test), with its Gloo
process group replaced by Ringfold's: every test that PyTorch has for Gloo on CPU tensors runs, at WORLD_SIZE ranks.

    pytorch_tests.py [TEST...]     # default: all but those of LEFT_OUT; PART=0/4: every fourth of them

The last line counts what passed, failed and was skipped (mostly tests of GPUs and of NCCL). Exit status 1: one failed.
"""

import copy
import os
import sys
import types
import unittest
import warnings

os.environ.setdefault("WORLD_SIZE", "4")
os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
os.environ["BACKEND"] = "gloo"

# PyTorch's test support imports it for tests of another kind; Debian does not have it.
sys.modules.setdefault("expecttest", types.SimpleNamespace(TestCase=unittest.TestCase, ACCEPT=False))

import torch
import torch.distributed as dist
import torch.multiprocessing
import ringfold_torch
from ringfold_torch import _c

warnings.simplefilter("ignore")


gloo_group = dist.ProcessGroupGloo


def ringfold_group(store, rank, size, timeout):
    return _c.create(store, rank, size, timeout, [], "", "", "", False)


def checked_group(wrapped_pg, store_prefix, store, rank, world_size, timeout):
    """With TORCH_DISTRIBUTED_DEBUG=DETAIL the process group is wrapped in one that checks calls through real Gloo."""
    helper = gloo_group(dist.PrefixStore(f"helper:{store_prefix}", store), rank, world_size, timeout=timeout)
    return dist.distributed_c10d._ProcessGroupWrapper(wrapped_pg, helper)


dist.distributed_c10d.ProcessGroupGloo = ringfold_group
dist.distributed_c10d._create_process_group_wrapper = checked_group

# Debian's PyTorch cannot import torch.distributed._shard with its Python 3.11, which this would do.
import torch.nn.parallel._replicated_tensor_ddp_utils as replicated
replicated._set_ddp_with_replicated_tensor = lambda value: None

from torch.testing._internal.distributed import distributed_test

_find = distributed_test.get_profiling_event


def get_profiling_event(postfix, profiler):
    """The tests look for Gloo's titles."""
    found = [copy.copy(e) for e in _find(postfix.replace("gloo:", "ringfold:"), profiler)]
    for event in found:
        event.name = event.name.replace("ringfold:", "gloo:")
    return found


distributed_test.get_profiling_event = get_profiling_event
# Left out, and why.
WORDS = "asks for the words of Gloo's message; tests/torch/errors_test.py tests what happens"
LEFT_OUT = {
    "test_barrier_timeout_full_group": WORDS,
    "test_barrier_timeout_group": WORDS,
    "test_monitored_barrier_gloo": WORDS,
    "test_monitored_barrier_gloo_rank_0_timeout": WORDS,
    "test_monitored_barrier_gloo_subgroup": WORDS,
    "test_monitored_barrier_failure_order": WORDS,
    "test_monitored_barrier_wait_all_ranks": WORDS,
    "test_ddp_logging_data_cpu": "asks for the backend to be named gloo",
}


class TestRingfold(distributed_test.TestDistBackend, distributed_test.DistributedTest._DistTestBase):
    def setUp(self):
        super().setUp()
        self._start_processes(torch.multiprocessing.get_context("fork").Process)  # quicker than spawn: PyTorch is here


# Gloo lacks these on the CPU, Ringfold does not.
for name in dir(TestRingfold):
    test = getattr(TestRingfold, name)
    if getattr(test, "__unittest_skip__", False) and test.__unittest_skip_why__.startswith("Only MPI supports"):
        test.__unittest_skip__ = False


def main():
    names = sys.argv[1:] or unittest.TestLoader().getTestCaseNames(TestRingfold)
    part, parts = (int(v) for v in os.environ.get("PART", "0/1").split("/"))
    suite = unittest.TestSuite(TestRingfold(n) for n in names[part::parts] if n not in LEFT_OUT)
    result = unittest.TextTestRunner(verbosity=2, stream=sys.stdout).run(suite)
    failed = len(result.failures) + len(result.errors)
    print(f"{result.testsRun - failed - len(result.skipped)} passed, {failed} failed, {len(result.skipped)} skipped")
    sys.exit(0 if result.wasSuccessful() else 1)


if __name__ == "__main__":
    main()
