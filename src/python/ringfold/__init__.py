"""Ringfold: collective communication between processes and hosts.

    import numpy as np
    import ringfold

    with ringfold.init() as comm:               # started by `ringfold run -n 4 -- python3 program.py`
        gradient = np.full(1000, comm.rank, np.float32)
        comm.all_reduce(gradient, op="avg")     # in place; waits

Arrays are anything with the buffer protocol that is contiguous: NumPy arrays, array.array, bytearray, memoryview. Types follow from
the buffer (dtype="bf16" says that 16-bit integers are bf16). Calls wait, with the GIL released and open to
KeyboardInterrupt; with async_op=True they return a Work. All ranks make the same calls in the same order. A failure is
an Error that names the rank, its host, the operation and the cause.
"""

from ._core import (
    ANY_SOURCE,
    Communicator,
    Counters,
    ErrorFeedback,
    Persistent,
    Work,
    __version__,
    allocate,
    encoded_bytes,
    error_bound,
    init,
    init_local,
    wait_all,
)
from ._errors import (
    AbortedError,
    DeniedError,
    Error,
    InternalError,
    InvalidError,
    IoError,
    MismatchError,
    PeerLostError,
    ProtocolError,
    TimeoutError,
    UnavailableError,
)

__all__ = [
    "ANY_SOURCE",
    "AbortedError",
    "Communicator",
    "Counters",
    "DeniedError",
    "Error",
    "ErrorFeedback",
    "InternalError",
    "InvalidError",
    "IoError",
    "MismatchError",
    "PeerLostError",
    "Persistent",
    "ProtocolError",
    "TimeoutError",
    "UnavailableError",
    "Work",
    "__version__",
    "allocate",
    "encoded_bytes",
    "error_bound",
    "init",
    "init_local",
    "wait_all",
]
