"""Compressed gradients for DistributedDataParallel."""

import itertools
import zlib
from typing import Dict, Optional

import torch
import torch.distributed as dist

from . import _c

_numbers = itertools.count()


class compress:
    """A communication hook that averages gradients with compressed links:

        model = DistributedDataParallel(model)
        hook = ringfold_torch.compress("int8")
        model.register_comm_hook(None, hook)

    A value is encoded at most twice on its way and summed in float32; all ranks end with the same bits. With
    `error_feedback` the runtime keeps what the codes have missed and adds it to the next step's, so that it is not
    lost: it belongs into checkpoints, by state_dict() and load_state_dict(). Buckets of other types than float32 travel
    as they are.

    codec: "int8", "int4", "auto", ... as in docs/compression.md; None: the process group's.
    group: the process group of the model; default: the default group.
    name: of this hook's error feedback, the same on all ranks and in later runs; default: by order of creation.
    """

    def __init__(self, codec: Optional[str] = "int8", group: Optional[dist.ProcessGroup] = None,
                 error_feedback: bool = True, name: Optional[str] = None) -> None:
        self.codec = None if codec is None else _c.check_codec(codec)
        self.group = group
        self.error_feedback = error_feedback
        self.name = f"ddp{next(_numbers)}" if name is None else name
        self.__name__ = self.__qualname__ = "ringfold_torch.compress"  # what DistributedDataParallel logs
        self._ordinals: Dict[torch.Tensor, int] = {}  # parameters in the order of their first buckets

    def __call__(self, state: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        from . import group_of
        group = group_of(self.group)
        gradient = bucket.buffer()
        if gradient.dtype != torch.float32:
            work = group.allreduce([gradient.div_(group.size())])
        else:
            work = group.compressed_mean(gradient, self.codec, self._feedback_of(bucket))
        return work.get_future().then(lambda done: done.value()[0])

    def _feedback_of(self, bucket: dist.GradBucket) -> str:
        # DistributedDataParallel forms its buckets anew after the first step. What was missed belongs to the
        # parameters, so the name says which ones these are, and a bucket of others begins with nothing.
        if not self.error_feedback:
            return ""
        ordinals = [self._ordinals.setdefault(p, len(self._ordinals)) for p in bucket.parameters()]
        return f"{self.name}/{zlib.crc32(repr(ordinals).encode()):08x}/{bucket.buffer().numel()}"

    def state_dict(self) -> dict:
        """The error feedback of this rank in the hook's group (ringfold_torch.state_dict)."""
        from . import state_dict
        return dict(state_dict(self.group), codec=self.codec, name=self.name)

    def load_state_dict(self, state: dict) -> None:
        from . import load_state_dict
        if state["codec"] != self.codec or state["name"] != self.name:
            raise ValueError(f"the state is of compress({state['codec']!r}, name={state['name']!r}), "
                             f"this is compress({self.codec!r}, name={self.name!r})")
        load_state_dict(state, self.group)
