"""What Ringfold raises. Every class is an Error; the ones with a natural relative in Python are that, too."""

import builtins
from typing import Optional


class Error(Exception):
    """A call failed. `rank`, `host`, `operation`, `sequence`, `epoch` and `cause` are what the surviving ranks agreed
    on (the verdict), and the same on all of them; `rank` is None where nobody could be named, and all are None where
    the failure concerns this rank alone (a wrong argument)."""

    code = "error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.rank: Optional[int] = None
        self.host: Optional[str] = None
        self.operation: Optional[str] = None
        self.sequence: Optional[int] = None
        self.epoch: Optional[int] = None
        self.cause: Optional[str] = None


class InvalidError(Error, ValueError):
    """The caller's arguments or configuration; nothing was started."""

    code = "invalid"


class MismatchError(Error):
    """Ranks made calls that do not belong together."""

    code = "mismatch"


class TimeoutError(Error, builtins.TimeoutError):  # noqa: A001
    """A deadline passed and nobody is known to be dead."""

    code = "timeout"


class PeerLostError(Error, ConnectionError):
    """A rank's process or its connection ended, or it stopped answering."""

    code = "peer_lost"


class AbortedError(Error):
    """Somebody called abort(), or the communicator was closed."""

    code = "aborted"


class UnavailableError(Error):
    """A device, an interface, memory or a package is missing."""

    code = "unavailable"


class DeniedError(Error, PermissionError):
    """A peer failed to prove the shared key, or the system refused access."""

    code = "denied"


class ProtocolError(Error):
    """Bytes that no correct peer sends."""

    code = "protocol"


class IoError(Error, OSError):
    """The system reported an error."""

    code = "io"


class InternalError(Error):
    """A fault of Ringfold's own."""

    code = "internal"


_BY_NUMBER = (
    Error,
    InvalidError,
    MismatchError,
    TimeoutError,
    PeerLostError,
    AbortedError,
    UnavailableError,
    DeniedError,
    ProtocolError,
    IoError,
    InternalError,
)


def _make(code: int, message: str, verdict: "Optional[tuple[int, str, str, int, int, str]]") -> Error:
    """For the extension module: the exception of a status."""
    error = _BY_NUMBER[code](message)
    if verdict is not None:
        rank, error.host, error.operation, error.sequence, error.epoch, error.cause = verdict
        error.rank = rank if rank >= 0 else None
    return error
