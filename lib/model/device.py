"""Where networks run, in which precision, and what becomes of memory that they no longer need."""

import ctypes
import sys
from contextlib import nullcontext
from functools import cache, partial

import torch

from lib.common.errors import OptionError
from lib.model import kernels
from lib.model.worker_pool import CORES


def available_devices() -> list[str]:
    """Device names usable here, best first."""
    found = [f"cuda:{n}" for n in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if torch.backends.mps.is_available():
        found.append("mps")
    return [*found, "cpu"]


def resolve_device(name: str | None) -> torch.device:
    """A device from an option value; None, "" and "auto" mean the best one. "cuda" without a GPU means the CPU, because
    clients send it as their default.

    Raises:
        OptionError: no such device here.
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
    """Context managers for forward passes: bfloat16 on CUDA, full precision elsewhere. Entered and left per call."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return partial(torch.autocast, "cuda", dtype=torch.bfloat16)
    return nullcontext


def bf16_is_fast(device: torch.device) -> bool:
    """Whether bfloat16 arithmetic is done by the hardware there."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def encoder_batch(device: torch.device, image_size: int) -> int:
    """Slices encoded at once: what fits comfortably into a small GPU; on a CPU each core does a small one, which needs least memory."""
    per_256 = 64 if device.type == "cuda" else CORES
    return max(1, per_256 * 256 * 256 // (image_size * image_size))


def run_batch(device: torch.device, compiled: bool = False) -> int:
    """Runs through a volume that go through the network at once: many fill a GPU; on a CPU each has a core (`lib.model.worker_pool`), while
    others encode for it. Where there are no others, both directions share one, so as to wait less for each other's Python, of which
    compiled networks need little; not where a slice would come out otherwise than alone (`lib.model.kernels`)."""
    if device.type != "cpu":
        return 32
    return 2 if CORES <= 2 and not compiled and kernels.available() else 1


def release_memory() -> None:
    """Returns what this process has freed to the system, as the C library of Linux does not by itself; elsewhere nothing.

    Takes some milliseconds. After encoding 300 slices it is 60 MB.
    """
    trim = _malloc_trim()
    if trim:
        trim(0)


@cache
def _malloc_trim():
    try:
        return ctypes.CDLL("libc.so.6").malloc_trim if sys.platform == "linux" else None
    except (OSError, AttributeError):  # another C library
        return None
