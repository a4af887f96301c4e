"""Types and meaning of what the extension module offers; import it from `ringfold`."""

import array
import mmap
from types import TracebackType
from typing import Any, Iterable, List, Literal, Optional, Sequence, Type, TypeVar, Union, overload

import numpy as np
import numpy.typing as npt

# Contiguous memory with elements of one of Ringfold's types. NumPy arrays and all else that has the buffer protocol.
Array = Union[npt.NDArray[Any], bytes, bytearray, memoryview, array.array[Any], mmap.mmap]
_A = TypeVar("_A", bound=Array)

# "f64", "f32", "f16", "bf16", "i8", "u8", "i32", "u32", "i64", "u64": what the elements are, where the buffer does not say (bytes)
# or cannot (bf16 as 16-bit integers).
_Type = Optional[str]
Op = Literal["sum", "prod", "min", "max", "avg", "scaled_sum"]

__version__: str
ANY_SOURCE: int

class Work:
    """A call that may still be running. It keeps its buffers until it is done, also when it is dropped. Any thread."""

    def wait(self, timeout: Optional[float] = None) -> Any:
        """Waits, with the GIL released, until the call is done. Returns what the call returns without async_op, or raises
        its Error. After `timeout` seconds: raises TimeoutError, and the call goes on (`done` tells the two apart)."""
    def test(self) -> bool:
        """Moves the call on without waiting; is it done?"""
    @property
    def done(self) -> bool:
        """Moves nothing."""
    @property
    def source(self) -> int:
        """Receives that are done: the rank that the message came from; -1 for all else."""

class Persistent:
    """A call on fixed buffers, checked and looked up once."""

    @overload
    def start(self, *, async_op: Literal[False] = False) -> Any: ...
    @overload
    def start(self, *, async_op: Literal[True]) -> Work: ...

class Counters:
    """What communication has cost this rank so far."""

    @property
    def touched_bytes(self) -> int: ...
    @property
    def system_calls(self) -> int: ...
    @property
    def yields(self) -> int: ...
    @property
    def sleeps(self) -> int: ...
    @property
    def wakeups(self) -> int: ...

class ErrorFeedback:
    """What this rank's codes have missed, by tensor."""

    def names(self) -> List[str]: ...
    def get(self, name: str) -> Optional[npt.NDArray[np.float32]]: ...
    def reset(self, name: Optional[str] = None) -> None: ...
    def save(self) -> bytes: ...
    def load(self, state: bytes) -> None: ...
    def add(self, state: bytes) -> None: ...

class Communicator:
    """A group of ranks that make the same calls in the same order.

    Every call waits and returns its result; with async_op=True it returns a Work whose wait() does. `timeout` 0: the communicator's.
    `codec`: how f32 travels ("int8", "topk:0.01", "none", ...), the same on all ranks. `op="scaled_sum"` takes a factor
    `scale`. Where `out` is None, all_reduce, reduce and broadcast work in place, and all others return a new NumPy array.
    """

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def job_rank(self) -> int:
        """Of this process in its job: the same in all of its communicators."""
    @property
    def epoch(self) -> int:
        """0, then one more for each reconfigure()."""
    @property
    def closed(self) -> bool: ...
    @property
    def error_feedback(self) -> ErrorFeedback: ...
    def close(self) -> None:
        """Leaves the group; calls in flight end with AbortedError here and PeerLostError on ranks that still wait for this
        one. Leaving a `with` block without an exception waits for all ranks first."""
    def __enter__(self) -> Communicator: ...
    def __exit__(self, kind: Optional[Type[BaseException]], value: Optional[BaseException], trace: Optional[TracebackType]) -> None: ...
    def check(self) -> None:
        """Raises the verdict, if the communicator has one."""
    def host_of(self, rank: int) -> str: ...
    def transport_to(self, peer: int) -> str: ...
    def split(self, color: int, key: int = 0) -> Optional[Communicator]:
        """Collective. Ranks of one color >= 0, ordered by key, then rank; color < 0: None."""
    def subset(self, ranks: Sequence[int], timeout: float = 0.0) -> Communicator:
        """Collective among these ranks only, the same list on each of them, in whose order they become a communicator."""
    def reconfigure(self) -> Communicator:
        """After an Error with a verdict: a communicator of the survivors. Collective among them. In a job that is open, one
        process that has come in the place of a lost rank is taken in with it, as the last rank."""
    def waiting(self) -> List[int]:
        """Ranks of the job (job_rank) that have come back and wait for that, as far as this rank knows. To take one in when
        nothing has failed, one rank calls abort()."""
    def abort(self, cause: str) -> None:
        """Ends the communicator on all ranks, with a verdict that names this rank and `cause`."""
    def counters(self) -> Counters: ...
    def tune(self, seconds: float = 2.0) -> None:
        """Collective: measures the links and chooses algorithms by that from now on."""
    def tuning(self) -> str: ...
    def explain(self, collective: str, count: int, dtype: str = "f32", *, op: Op = "sum", root: int = 0, codec: Optional[str] = None) -> str: ...
    def algorithm_for(self, collective: str, count: int, dtype: str = "f32", *, op: Op = "sum", root: int = 0, codec: Optional[str] = None) -> str: ...
    def codec_for(self, collective: str, count: int, dtype: str = "f32", *, op: Op = "sum", root: int = 0, codec: Optional[str] = None) -> str: ...
    @overload
    def all_reduce(self, array: _A, out: Optional[_A] = None, *, op: Op = "sum", scale: Optional[float] = None, feedback: Optional[str] = None, dtype: _Type = None, codec: Optional[str] = None, timeout: float = 0.0, async_op: Literal[False] = False) -> _A:
        """out[i] = op over all ranks of array[i]."""
    @overload
    def all_reduce(self, array: _A, out: Optional[_A] = None, *, op: Op = "sum", scale: Optional[float] = None, feedback: Optional[str] = None, dtype: _Type = None, codec: Optional[str] = None, timeout: float = 0.0, async_op: Literal[True]) -> Work: ...
    @overload
    def reduce(self, array: _A, root: int, out: Optional[_A] = None, *, op: Op = "sum", scale: Optional[float] = None, dtype: _Type = None, codec: Optional[str] = None, timeout: float = 0.0, async_op: Literal[False] = False) -> Optional[_A]:
        """The same at root only; None elsewhere."""
    @overload
    def reduce(self, array: _A, root: int, out: Optional[_A] = None, *, op: Op = "sum", scale: Optional[float] = None, dtype: _Type = None, codec: Optional[str] = None, timeout: float = 0.0, async_op: Literal[True]) -> Work: ...
    @overload
    def reduce_scatter(self, array: Array, out: Optional[Array] = None, *, op: Op = "sum", scale: Optional[float] = None, feedback: Optional[str] = None, dtype: _Type = None, codec: Optional[str] = None, timeout: float = 0.0, async_op: Literal[False] = False) -> Any:
        """array: size equal blocks; the reduced block number rank."""
    @overload
    def reduce_scatter(self, array: Array, out: Optional[Array] = None, *, op: Op = "sum", scale: Optional[float] = None, feedback: Optional[str] = None, dtype: _Type = None, codec: Optional[str] = None, timeout: float = 0.0, async_op: Literal[True]) -> Work: ...
    @overload
    def all_gather(self, array: Array, out: Optional[Array] = None, *, dtype: _Type = None, codec: Optional[str] = None, timeout: float = 0.0, async_op: Literal[False] = False) -> Any:
        """Everybody's array, with a new first dimension for the rank."""
    @overload
    def all_gather(self, array: Array, out: Optional[Array] = None, *, dtype: _Type = None, codec: Optional[str] = None, timeout: float = 0.0, async_op: Literal[True]) -> Work: ...
    @overload
    def broadcast(self, array: _A, root: int, *, dtype: _Type = None, codec: Optional[str] = None, timeout: float = 0.0, async_op: Literal[False] = False) -> _A:
        """array of every rank = array of root."""
    @overload
    def broadcast(self, array: _A, root: int, *, dtype: _Type = None, codec: Optional[str] = None, timeout: float = 0.0, async_op: Literal[True]) -> Work: ...
    @overload
    def gather(self, array: Array, root: int, out: Optional[Array] = None, *, dtype: _Type = None, codec: Optional[str] = None, timeout: float = 0.0, async_op: Literal[False] = False) -> Any:
        """all_gather at root only; None elsewhere."""
    @overload
    def gather(self, array: Array, root: int, out: Optional[Array] = None, *, dtype: _Type = None, codec: Optional[str] = None, timeout: float = 0.0, async_op: Literal[True]) -> Work: ...
    @overload
    def scatter(self, out: _A, root: int, array: Optional[Array] = None, *, dtype: _Type = None, codec: Optional[str] = None, timeout: float = 0.0, async_op: Literal[False] = False) -> _A:
        """Block number rank of root's array; array is needed at root."""
    @overload
    def scatter(self, out: _A, root: int, array: Optional[Array] = None, *, dtype: _Type = None, codec: Optional[str] = None, timeout: float = 0.0, async_op: Literal[True]) -> Work: ...
    @overload
    def all_to_all(self, array: Array, out: Optional[Array] = None, *, dtype: _Type = None, codec: Optional[str] = None, timeout: float = 0.0, async_op: Literal[False] = False) -> Any:
        """Block d of array goes to block rank of rank d's result; size equal blocks."""
    @overload
    def all_to_all(self, array: Array, out: Optional[Array] = None, *, dtype: _Type = None, codec: Optional[str] = None, timeout: float = 0.0, async_op: Literal[True]) -> Work: ...
    @overload
    def all_gather_v(self, array: Array, counts: Sequence[int], out: Optional[Array] = None, *, dtype: _Type = None, codec: Optional[str] = None, timeout: float = 0.0, async_op: Literal[False] = False) -> Any:
        """Blocks of counts[r] elements, one after another. Same counts on all ranks."""
    @overload
    def all_gather_v(self, array: Array, counts: Sequence[int], out: Optional[Array] = None, *, dtype: _Type = None, codec: Optional[str] = None, timeout: float = 0.0, async_op: Literal[True]) -> Work: ...
    @overload
    def reduce_scatter_v(self, array: Array, counts: Sequence[int], out: Optional[Array] = None, *, op: Op = "sum", scale: Optional[float] = None, dtype: _Type = None, codec: Optional[str] = None, timeout: float = 0.0, async_op: Literal[False] = False) -> Any:
        """Blocks of counts[r] elements; the reduced block number rank."""
    @overload
    def reduce_scatter_v(self, array: Array, counts: Sequence[int], out: Optional[Array] = None, *, op: Op = "sum", scale: Optional[float] = None, dtype: _Type = None, codec: Optional[str] = None, timeout: float = 0.0, async_op: Literal[True]) -> Work: ...
    @overload
    def all_to_all_v(self, array: Array, send_counts: Sequence[int], receive_counts: Sequence[int], out: Optional[Array] = None, *, dtype: _Type = None, codec: Optional[str] = None, timeout: float = 0.0, async_op: Literal[False] = False) -> Any:
        """send_counts[d] elements go to rank d, receive_counts[s] come from rank s."""
    @overload
    def all_to_all_v(self, array: Array, send_counts: Sequence[int], receive_counts: Sequence[int], out: Optional[Array] = None, *, dtype: _Type = None, codec: Optional[str] = None, timeout: float = 0.0, async_op: Literal[True]) -> Work: ...
    @overload
    def barrier(self, *, timeout: float = 0.0, async_op: Literal[False] = False) -> None:
        """Returns when every rank has called it."""
    @overload
    def barrier(self, *, timeout: float = 0.0, async_op: Literal[True]) -> Work: ...
    @overload
    def send(self, array: Array, peer: int, tag: int = 0, *, dtype: _Type = None, codec: Optional[str] = None, timeout: float = 0.0, async_op: Literal[False] = False) -> None:
        """Matched by sender and tag; sends and receives may come in any order on both sides."""
    @overload
    def send(self, array: Array, peer: int, tag: int = 0, *, dtype: _Type = None, codec: Optional[str] = None, timeout: float = 0.0, async_op: Literal[True]) -> Work: ...
    @overload
    def recv(self, array: _A, peer: int = -1, tag: int = 0, *, dtype: _Type = None, codec: Optional[str] = None, timeout: float = 0.0, async_op: Literal[False] = False) -> _A:
        """From peer, or from anybody (ANY_SOURCE; Work.source tells who)."""
    @overload
    def recv(self, array: _A, peer: int = -1, tag: int = 0, *, dtype: _Type = None, codec: Optional[str] = None, timeout: float = 0.0, async_op: Literal[True]) -> Work: ...
    @overload
    def send_recv(self, array: Array, to: int, out: _A, source: int, tag: int = 0, *, dtype: _Type = None, codec: Optional[str] = None, timeout: float = 0.0, async_op: Literal[False] = False) -> _A:
        """Both at once."""
    @overload
    def send_recv(self, array: Array, to: int, out: _A, source: int, tag: int = 0, *, dtype: _Type = None, codec: Optional[str] = None, timeout: float = 0.0, async_op: Literal[True]) -> Work: ...
    def persistent_all_reduce(self, array: Array, out: Optional[Array] = None, *, op: Op = "sum", scale: Optional[float] = None, feedback: Optional[str] = None, dtype: _Type = None, codec: Optional[str] = None, timeout: float = 0.0) -> Persistent: ...
    def persistent_reduce_scatter(self, array: Array, out: Optional[Array] = None, *, op: Op = "sum", scale: Optional[float] = None, feedback: Optional[str] = None, dtype: _Type = None, codec: Optional[str] = None, timeout: float = 0.0) -> Persistent: ...
    def persistent_all_gather(self, array: Array, out: Optional[Array] = None, *, dtype: _Type = None, codec: Optional[str] = None, timeout: float = 0.0) -> Persistent: ...
    def persistent_broadcast(self, array: Array, root: int, *, dtype: _Type = None, codec: Optional[str] = None, timeout: float = 0.0) -> Persistent: ...

def init(*, rank: Optional[int] = None, size: Optional[int] = None, rendezvous: Optional[str] = None, timeout: float = 0.0, transport: Optional[str] = None, algorithm: Optional[str] = None, key_file: Optional[str] = None, deterministic: bool = False, background: bool = False, codec: Optional[str] = None, open: bool = False) -> Communicator:
    """Joins the job; waits until all ranks have. rank and size None: from the launcher's variables. What is None or 0: from
    RINGFOLD_* variables, else the default. `background`: a thread drives calls that nobody waits for. `open`, the same on all
    ranks: processes may join in the place of ranks that were lost (reconfigure). One that does has RINGFOLD_RESTARTED=1, which
    `ringfold run --restarts` sets: it waits until the others take it in, and its epoch is not 0."""

def init_local(ranks: int, *, rendezvous: Optional[str] = None, timeout: float = 0.0, transport: Optional[str] = None, algorithm: Optional[str] = None, key_file: Optional[str] = None, deterministic: bool = False, background: bool = False, codec: Optional[str] = None) -> List[Communicator]:
    """Communicators of one group in this process, for ranks as threads."""

def wait_all(works: Iterable[Work], timeout: Optional[float] = None) -> List[Any]:
    """Waits for all, then returns their results or raises the first Error in their order."""

def allocate(shape: Union[int, Sequence[int]], dtype: npt.DTypeLike = "float32") -> npt.NDArray[Any]:
    """A zeroed array in memory that ranks on the same host read in place."""

def encoded_bytes(codec: str, elems: int) -> int: ...
def error_bound(codec: str) -> float:
    """Largest error of one coding, as a share of the largest magnitude in its block; inf: none that is of use."""
