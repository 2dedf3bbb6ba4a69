"""Several processes that train together, as `torchrun` starts them."""

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Workers:
    """This process among its peers: number, count, device. Rank 0 writes files and logs."""

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def agree(self, first_says: bool) -> bool:
        """What the first process says, everywhere."""
        if self.count == 1:
            return first_says
        said = torch.tensor([int(first_says)], device=self.device)
        dist.broadcast(said, 0)
        return bool(said.item())

    @classmethod
    def of(cls, device: str) -> "Workers":
        """Joins the group that `torchrun` announces in the environment; alone without one."""
        count = int(os.environ.get("WORLD_SIZE", 1))
        if count == 1:
            return cls(0, 1, torch.device(device))
        where = torch.device(device)
        if where.type == "cuda":
            where = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(where)
        if not dist.is_initialized():
            # The others wait for the first one while it checks on volumes, which can take long.
            dist.init_process_group("nccl" if where.type == "cuda" else "gloo", timeout=timedelta(hours=6))
        return cls(dist.get_rank(), count, where)
