"""Find checkpoints and load them: weights only, checked by size and SHA-256."""

import hashlib
import json
import logging
import os
import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from lib.common.atomic_files import write_text
from lib.common.errors import CheckpointError
from lib.model.build import CONFIG_DIRS, build, keep_decoder_in_float32, read_config

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
EMBEDDED = ROOT / "apps" / "sam2" / "model" / "sam2_hiera_nano_256.safetensors"
DOWNLOADS = Path(os.environ.get("SAM2_CHECKPOINTS", ROOT / "apps" / "sam2" / "model" / "downloads"))

# What torch and safetensors raise on files that are no checkpoints.
_READ_ERRORS = (OSError, RuntimeError, EOFError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError,
               ImportError, SafetensorError, pickle.UnpicklingError)  # fmt: skip

_SAM21 = "https://dl.fbaipublicfiles.com/segment_anything_2/092824/"
_SAM20 = "https://dl.fbaipublicfiles.com/segment_anything_2/072824/"


@dataclass(frozen=True)
class Checkpoint:
    """One set of weights.

    Attributes:
        name: The name by which users choose it.
        config: Configuration file of its network, see `lib.model.build`.
        image_size: Side of the network's square input in pixels.
        path: The local file, which need not exist.
        url, bytes, sha256: Address, size and digest of the published file, None where they are not known.
    """

    name: str
    config: str
    image_size: int
    path: Path
    url: str | None = None
    bytes: int | None = None
    sha256: str | None = None


def _official(name, config, file, size, sha256, base=_SAM21, image_size=1024) -> Checkpoint:
    return Checkpoint(name, config, image_size, DOWNLOADS / file, base + file, size, sha256)


# Sizes and digests are those of the files that Meta publishes (from the Git LFS pointers of the model repositories).
KNOWN = {
    c.name: c
    for c in (
        Checkpoint("embedded", "sam2_hiera_nano_256.yaml", 256, EMBEDDED),
        _official("tiny", "sam2.1/sam2.1_hiera_t.yaml", "sam2.1_hiera_tiny.pt", 156008466,
                  "7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69"),
        _official("small", "sam2.1/sam2.1_hiera_s.yaml", "sam2.1_hiera_small.pt", 184416285,
                  "6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38"),
        _official("base_plus", "sam2.1/sam2.1_hiera_b+.yaml", "sam2.1_hiera_base_plus.pt", 323606802,
                  "a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5"),
        _official("large", "sam2.1/sam2.1_hiera_l.yaml", "sam2.1_hiera_large.pt", 898083611,
                  "2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318"),
        _official("sam2_tiny", "sam2/sam2_hiera_t.yaml", "sam2_hiera_tiny.pt", None,
                  "65b50056e05bcb13694174f51bb6da89c894b57b75ccdf0ba6352c597c5d1125", _SAM20),
        _official("sam2_small", "sam2/sam2_hiera_s.yaml", "sam2_hiera_small.pt", None,
                  "95949964d4e548409021d47b22712d5f1abf2564cc0c3c765ba599a24ac7dce3", _SAM20),
        _official("medsam2", "sam2.1/sam2.1_hiera_t.yaml", "MedSAM2_latest.pt", None, None,
                  "https://huggingface.co/wanglab/MedSAM2/resolve/main/", 512),
    )
}  # fmt: skip


def find(name: str | Path) -> Checkpoint:
    """Return the checkpoint of a name (see KNOWN) or path.

    A path may carry its configuration and image size after "@": `/data/my.pt@sam2.1/sam2.1_hiera_s.yaml@512`. Without them, a safetensors
    file of this project says its own, and the configuration of a .pt file is found by the shapes of its tensors.

    Raises:
        CheckpointError: It is neither a known name nor a file, the file is damaged, or its configuration or image size is unknown.
    """
    if str(name) in KNOWN:
        return KNOWN[str(name)]
    file, _, rest = str(name).partition("@")
    path = Path(file)
    if not path.is_file():
        raise CheckpointError(f"Unknown checkpoint {file!r}: use {', '.join(KNOWN)}, or the path of a .pt or .safetensors file.")
    config, _, size = rest.partition("@")
    if not config and path.suffix == ".safetensors":
        metadata = _read_metadata(path)
        config, size = metadata.get("config", ""), metadata.get("image_size", "")
        size = size or next((k.image_size for k in KNOWN.values() if k.config == config), 0)
    if not config:
        config = _config_by_shape(read_weights(path))
    if not (str(size or 1024).isdecimal() and any((folder / config).is_file() for folder in CONFIG_DIRS)):
        raise CheckpointError(f"{path.name} needs a configuration and an image size like @sam2.1/sam2.1_hiera_s.yaml@512 after its path.")
    return Checkpoint(path.stem, config, int(size or 1024), path)


def load(checkpoint: Checkpoint) -> torch.nn.Module:
    """Return the network with its weights: float32, on the CPU, in evaluation mode.

    Raises:
        CheckpointError: The file is missing, damaged, holds more than weights, or is of another architecture.
    """
    verify(checkpoint)
    weights = read_weights(checkpoint.path)
    model = build(checkpoint.config, image_size=checkpoint.image_size)
    try:
        model.load_state_dict({k: v.float() for k, v in weights.items()})
    except RuntimeError as e:
        logger.warning("%s", e)
        raise CheckpointError(f"{checkpoint.path.name} does not hold weights of {checkpoint.config}.") from e
    logger.info("Loaded checkpoint %s from %s.", checkpoint.name, checkpoint.path)
    return keep_decoder_in_float32(model)


def verify(checkpoint: Checkpoint) -> None:
    """Check that the file exists, and that it is the published one if its size or digest is known.

    Raises:
        CheckpointError: The file is missing or differs from the published one.
    """
    path = checkpoint.path
    if not path.is_file():
        how = f"fetch it with: python main.py download {checkpoint.name}" if checkpoint.url else "train it or check the path"
        raise CheckpointError(f"The checkpoint {checkpoint.name!r} is not on this machine ({path.name}); {how}.")
    if checkpoint.bytes is not None and path.stat().st_size != checkpoint.bytes:
        raise CheckpointError(
            f"{path.name} has {path.stat().st_size} bytes instead of {checkpoint.bytes}: delete it and download it again."
        )
    if checkpoint.sha256 is not None and sha256(path) != checkpoint.sha256:
        raise CheckpointError(f"{path.name} does not have the published SHA-256: delete it and download it again.")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a .safetensors or .pt file. A .pt file may hold nothing but weights.

    Raises:
        CheckpointError: The file is damaged, or a pickle with anything else in it.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        weights = content.get("model", content)
        if not all(isinstance(v, torch.Tensor) for v in weights.values()):
            raise CheckpointError(f"{path.name} holds more than weights.")
        return weights
    except CheckpointError:
        raise
    except _READ_ERRORS as e:
        logger.warning("Reading %s failed: %s", path, e)
        raise CheckpointError(f"{path.name} is damaged or not a checkpoint of weights only; it was not loaded.") from e


def save_weights(weights: dict[str, torch.Tensor], path: Path, config: str, *, half: bool = True, **metadata: str) -> None:
    """Write a safetensors file with its configuration and other `metadata`. The file appears complete or not at all.

    Args:
        half: Whether to write float16 instead of float32.
    """
    temporary = path.with_suffix(".tmp")
    tensors = {k: (v.half() if half else v.float()).cpu().contiguous() for k, v in weights.items()}
    save_file(tensors, temporary, metadata={"config": config, **metadata})
    os.replace(temporary, path)


def set_metadata(path: Path, **values: str) -> None:
    """Change metadata of a checkpoint: in its safetensors file, or in a JSON file beside a .pt file. The file is replaced atomically."""
    if path.suffix != ".safetensors":
        write_text(_metadata_file(path), json.dumps({**_read_metadata(path), **values}))
        return
    temporary = path.with_suffix(".tmp")
    save_file(load_file(path), temporary, metadata={**_read_metadata(path), **values})
    os.replace(temporary, path)


def metadata(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the calibrated values of a checkpoint, from its file or the JSON file beside it; what was not calibrated is left out.

    Returns:
        presence_drop, presence_gain: `score_drop` and `appearance_gain` of `lib.propagation.object_end.ObjectEndDetector`, as text.
        slice_quality: Fitted estimator as JSON (`lib.quality.estimator.QualityEstimator`).
    """
    values = _read_metadata(checkpoint.path)
    return {k: values[k] for k in ("presence_drop", "presence_gain", "slice_quality") if k in values}


def _metadata_file(path: Path) -> Path:
    """Return the JSON file that holds the metadata of a .pt file."""
    return path.with_name(path.name + ".json")


def _read_metadata(path: Path) -> dict:
    if path.suffix != ".safetensors":
        try:
            return json.loads(_metadata_file(path).read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as e:
            raise CheckpointError(f"{_metadata_file(path).name} is damaged: delete it, and calibrate again.") from e
    try:
        with safe_open(path, "pt") as f:
            return f.metadata() or {}
    except (OSError, SafetensorError) as e:
        raise CheckpointError(f"{path.name} is damaged or not a safetensors file.") from e


def _config_by_shape(weights: dict[str, torch.Tensor]) -> str:
    """Return the configuration whose network has tensors of exactly these shapes."""
    shapes = {k: tuple(v.shape) for k, v in weights.items()}
    width = shapes.get("image_encoder.trunk.patch_embed.proj.weight", (0,))[0]
    for config in dict.fromkeys(c.config for c in KNOWN.values()):
        # Only networks of the right width are built, because the large one takes a gigabyte.
        if read_config(config).image_encoder.trunk.get("embed_dim", 96) != width:
            continue
        if shapes == {k: tuple(v.shape) for k, v in build(config).state_dict().items()}:
            return config
    raise CheckpointError("The checkpoint fits no known SAM 2 architecture; name its configuration after '@'.")
