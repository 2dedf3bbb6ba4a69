"""Pre-annotation: masks of all images of a folder from prompts that lie beside one another in files, nobody sitting in front."""

import json
import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from lib.common.atomic_files import write_text
from lib.common.errors import PromptError, UserError
from lib.engine.options import Options
from lib.engine.request import parse_prompts
from lib.engine.segmenter import Segmenter
from lib.imaging.datasets import ENDINGS, Case, image_name
from lib.imaging.frames import resolve_axis
from lib.imaging.readers import read_mask, read_volume
from lib.imaging.volume import Volume
from lib.imaging.writers import write_mask
from lib.prompts.volume_prompts import Prompts, make_prompts

logger = logging.getLogger(__name__)

ENDING = ".nii.gz"


def find_work(studies: str | Path, prompts: str | Path) -> list[Case]:
    """Images of a folder that have a file of prompts of the same name: NAME.json, or a label map. `Case.label` is that file.

    Raises:
        UserError: no such folder, or no pair.
    """
    studies, prompts = Path(studies), Path(prompts)
    for folder in (studies, prompts):
        if not folder.is_dir():
            raise UserError(f"There is no folder {folder}.")
    files = {image_name(p) if p.suffix != ".json" else p.stem: p for p in sorted(prompts.iterdir()) if _is_prompts(p)}
    images = [p for p in sorted(studies.iterdir()) if p.name.lower().endswith(ENDINGS)]
    found = [Case(image_name(p), p, files[image_name(p)], {}) for p in images if image_name(p) in files and files[image_name(p)] != p]
    if not found:
        raise UserError(f"No image in {studies} has prompts in {prompts}: NAME.json or a label map NAME.nii.gz is needed for each.")
    return found


def read_prompts(path: Path, volume: Volume, options: Options) -> dict[str, Prompts]:
    """Prompts of each structure, in the order of the file.

    A JSON file maps names of structures to what a request of the server holds ("foreground", "background", "boxes", "roi",
    "absent"; voxels i, j, k). Of a label map, each value is a structure, and the slices where it is are taken as painted.

    Raises:
        UserError: unreadable, or prompts that make no sense.
    """
    if path.suffix == ".json":
        try:
            content = json.loads(path.read_text())
            found = {str(name): parse_prompts(dict(request), volume, options) for name, request in content.items()}
        except UserError:
            raise
        except (OSError, ValueError, TypeError, AttributeError) as e:
            raise PromptError(f"{path.name} does not map names of structures to prompts.") from e
    else:
        axis = resolve_axis(volume, options.axis)
        labels = read_mask(path, volume)
        found = {f"label_{v}": _painted(volume, labels == v, axis) for v in np.unique(labels).tolist() if v}
    if not found:
        raise PromptError(f"{path.name} holds no prompts.")
    return found


def segment_case(case: Case, out: Path, options: Options, segmenter: Segmenter) -> dict:
    """Writes OUT/NAME.nii.gz, a label map with 1, 2, ... for the structures in the order of the prompts (later ones go over
    earlier ones), and what the values mean to OUT/NAME.json."""
    volume = read_volume(case.image)
    labels = np.zeros(volume.shape, np.uint8)
    names = {}
    for value, (name, prompts) in enumerate(read_prompts(case.label, volume, options).items(), 1):
        labels[segmenter.segment(volume, prompts, options).mask] = value
        names[name] = value
    write_text(out / f"{case.name}.json", json.dumps(names, indent=1))
    write_mask(labels, volume, out / f"{case.name}{ENDING}")
    return {"voxels": {name: int((labels == v).sum()) for name, v in names.items()}}


def worker(out: Path, options: Options) -> Callable[[Case], dict]:
    """Segments cases, one after the other; see `lib.evaluation.run.worker`."""
    segmenter = Segmenter()

    def work(case: Case) -> dict:
        start = time.perf_counter()
        try:
            report = segment_case(case, out, options, segmenter)
        except Exception as e:  # the others go on
            logger.debug("%s failed.", case.name, exc_info=True)
            report = {"error": str(e) if isinstance(e, UserError) else f"{type(e).__name__}: {e}"}
        return {"case": case.name, **report, "seconds": round(time.perf_counter() - start, 2)}

    return work


def run(cases: list[Case], out: Path, options: Options, execute, progress=iter, resume: bool = True) -> Iterator[dict]:
    """Reports as cases are finished; with `resume`, cases whose label map is there are left alone. `execute`: see
    `lib.evaluation.distribute.executor`."""
    out.mkdir(parents=True, exist_ok=True)
    todo = [c for c in cases if not (resume and (out / f"{c.name}{ENDING}").is_file())]
    if len(todo) < len(cases):
        logger.info("%d of %d images have a label map already.", len(cases) - len(todo), len(cases))
    if todo:
        yield from progress(execute(todo, partial(worker, out, options)), total=len(todo))


def _painted(volume: Volume, mask: np.ndarray, axis: int) -> Prompts:
    slices = np.flatnonzero(mask.any(tuple(a for a in range(3) if a != axis)))
    return make_prompts(volume, masks={int(t): mask.take(t, axis) for t in slices}, axis=axis)


def _is_prompts(path: Path) -> bool:
    return path.is_file() and (path.suffix == ".json" or path.name.lower().endswith(ENDINGS)) and path.name != "dataset.json"
