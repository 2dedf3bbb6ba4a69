"""Where networks run, in which precision, how much they do at once, and how freed memory goes back to the system."""

import ctypes
import sys
from contextlib import nullcontext
from functools import cache, partial

import torch

from lib.common.errors import OptionError


def available_devices() -> list[str]:
    """Return the names of the devices that can be used here, the best one first."""
    names = [f"cuda:{n}" for n in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if torch.backends.mps.is_available():
        names.append("mps")
    return [*names, "cpu"]


def resolve_device(name: str | None) -> torch.device:
    """Return the device that an option value names.

    Args:
        name: A name of `available_devices`. None, "" and "auto" mean the best one; "cuda" on a machine without a GPU means the CPU, because
            clients send it as their default.

    Raises:
        OptionError: There is no such device here.
    """
    name = (name or "auto").strip().lower()
    if name == "auto":
        return torch.device(available_devices()[0])
    if name == "cuda":
        return torch.device(next((d for d in available_devices() if d.startswith("cuda")), "cpu"))
    if name not in available_devices():
        raise OptionError(f"There is no device {name!r} here: use one of {', '.join(available_devices())}.")
    return torch.device(name)


def autocast_factory(device: torch.device):
    """Return a function that makes the context manager for a forward pass: bfloat16 on CUDA, full precision elsewhere."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return partial(torch.autocast, "cuda", dtype=torch.bfloat16)
    return nullcontext


def bf16_is_fast(device: torch.device) -> bool:
    """Return whether the hardware of `device` computes in bfloat16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def slices_at_once(device: torch.device, image_size: int) -> int:
    """Return how many slices go through the image encoder as one batch.

    On a CPU it is one, so that a slice has the same features whenever it is encoded; a GPU takes as many as fit comfortably into
    the memory of a small one.
    """
    return max(1, 64 * 256 * 256 // (image_size * image_size)) if device.type != "cpu" else 1


def passes_at_once(device: torch.device) -> int:
    """Return how many passes through gaps go through the network as one batch: many fill a GPU; on a CPU each is computed alone."""
    return 1 if device.type == "cpu" else 32


def release_memory() -> None:
    """Give memory that this process has freed back to the system, which the C library of Linux does not do by itself.

    It takes some milliseconds. After encoding 300 slices it returns about 60 MB. On other systems nothing happens.
    """
    if trim := _malloc_trim():
        trim(0)


@cache
def _malloc_trim():
    try:
        return ctypes.CDLL("libc.so.6").malloc_trim if sys.platform == "linux" else None
    except (OSError, AttributeError):  # Another C library has no such function.
        return None
