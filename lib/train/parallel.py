"""Several processes that train together, as `torchrun` starts them."""

import os
from dataclasses import dataclass

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
            dist.init_process_group("nccl" if where.type == "cuda" else "gloo")
        return cls(dist.get_rank(), count, where)
