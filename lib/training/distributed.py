"""Training in several processes at once, as `torchrun` starts them."""

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Workers:
    """A group of `count` training processes, as the one with the number `rank` and its own `device` sees it."""

    rank: int
    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and logs."""
        return self.rank == 0

    def broadcast_from_first(self, value: bool) -> bool:
        """Return, in all processes, the `value` that the first process passed."""
        if self.count == 1:
            return value
        tensor = torch.tensor([int(value)], device=self.device)
        dist.broadcast(tensor, 0)
        return bool(tensor.item())

    @classmethod
    def join(cls, device: str) -> "Workers":
        """Join the group that `torchrun` describes in environment variables, or form a group of one without them."""
        count, own_device = int(os.environ.get("WORLD_SIZE", 1)), torch.device(device)
        if count == 1:
            return cls(0, 1, own_device)
        if own_device.type == "cuda":
            own_device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(own_device)
        if not dist.is_initialized():
            # The other processes wait while the first one validates on volumes, which can take long.
            dist.init_process_group("nccl" if own_device.type == "cuda" else "gloo", timeout=timedelta(hours=6))
        return cls(dist.get_rank(), count, own_device)
