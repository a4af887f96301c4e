"""Ringfold as a backend of torch.distributed.

    import ringfold_torch
    torch.distributed.init_process_group("ringfold")

Errors of its process groups are `Error`s (a RuntimeError), which name the rank that caused them. docs/torch.md says
what is supported.
"""

import atexit
import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import Optional

import torch
import torch.distributed as dist

from . import _c
from ._c import Error, ProcessGroupRingfold
from .compress import compress

__all__ = ["Error", "Options", "ProcessGroupRingfold", "abort", "compress", "group_of", "load_state_dict",
           "monitored_barrier", "register", "state_dict"]


@dataclass
class Options:
    """Of one process group, as `pg_options` of init_process_group() or new_group(); the same on all of its ranks.

    What is left empty comes from the RINGFOLD_* variables, and for a group within the default group from that one.
    """
    codec: str = ""           # how float32 sums and means travel: "none", "int8", "auto", ... (docs/compression.md)
    algorithm: str = ""       # "auto", "ring", "tree", ...
    transport: str = ""       # "auto", "shm", "tcp"
    deterministic: bool = False  # the same bits whatever the size, algorithm, transport and number of calls in flight


def _create(place, options: Optional[Options]) -> ProcessGroupRingfold:
    if options is None:
        options = Options()
    elif not isinstance(options, Options):
        raise TypeError(f"pg_options must be ringfold_torch.Options, not {type(options).__name__}")
    if options.codec:
        _c.check_codec(options.codec)  # before anybody waits for this rank
    return _c.create(place.store, place.group_rank, place.group_size, place.timeout,
                     list(place.global_ranks_in_group), options.codec, options.algorithm, options.transport,
                     options.deterministic)


def register() -> None:
    """Makes the backend known to torch.distributed: done by `import ringfold_torch`, and by PyTorch itself where it
    looks for entry points of the group torch.distributed.backends."""
    if hasattr(dist.Backend, "RINGFOLD"):
        return
    since_2_0 = int(torch.__version__.split(".")[0]) >= 2
    kinds = ["cpu", "cuda"] if torch.backends.cuda.is_built() else ["cpu"]
    devices = {"devices": kinds} if since_2_0 else {}
    dist.Backend.register_backend("ringfold", _create, extended_api=True, **devices)


def group_of(group: Optional[dist.ProcessGroup] = None) -> ProcessGroupRingfold:
    """The Ringfold group behind a process group, by default the default group."""
    group = group or dist.distributed_c10d._get_default_group()
    if isinstance(group, ProcessGroupRingfold):
        return group
    if hasattr(group, "_get_backend"):  # since 2.0 a process group passes calls on to backends
        backend = group._get_backend(torch.device("cpu"))
        if isinstance(backend, ProcessGroupRingfold):
            return backend
    raise ValueError(f"{group} is no process group of backend ringfold")


def monitored_barrier(group: Optional[dist.ProcessGroup] = None, timeout: Optional[timedelta] = None,
                      wait_all_ranks: bool = False) -> None:
    """dist.monitored_barrier() for groups of this backend, which that function does not know."""
    group_of(group).monitored_barrier(timeout, wait_all_ranks)


def abort(group: Optional[dist.ProcessGroup] = None, cause: str = "the program called abort()") -> None:
    """Ends the group on all of its ranks: their calls fail with an Error that names this rank and `cause`."""
    group_of(group).abort(cause)


def state_dict(group: Optional[dist.ProcessGroup] = None) -> dict:
    """What compression on this rank still owes to later calls, for this rank's part of a checkpoint."""
    of = group_of(group)
    saved = torch.frombuffer(bytearray(of.save_feedback()), dtype=torch.uint8)
    return {"rank": of.rank(), "world_size": of.size(), "error_feedback": saved}


def load_state_dict(state: dict, group: Optional[dist.ProcessGroup] = None, add: bool = False) -> None:
    """Puts back what state_dict() gave. With fewer ranks than before, each loads its own state and adds (`add`) some
    of those that no rank has loaded."""
    saved = bytes(state["error_feedback"].numpy())
    of = group_of(group)
    (of.add_feedback if add else of.load_feedback)(saved)


def _tell_others(kind, value, trace, _before=sys.excepthook):
    # A program that ends by an exception takes its ranks' peers with it: they are to hear why.
    if not issubclass(kind, (Error, KeyboardInterrupt)):
        _c.abort_all(f"{kind.__name__}: {value}")
    _before(kind, value, trace)


sys.excepthook = _tell_others
atexit.register(_c.shutdown_all)
register()
