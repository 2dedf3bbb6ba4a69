"""Pre-annotation: segment all images of a folder from prompts in files, without a user."""

import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from lib.common.atomic_files import write_text
from lib.common.errors import PromptError, UserError
from lib.engine.options import Options
from lib.engine.request import parse_prompts
from lib.engine.segmenter import Segmenter
from lib.evaluation.distribute import Executor, Worker, process_unfinished, report_case
from lib.imaging.datasets import Case, image_name
from lib.imaging.frames import resolve_axis
from lib.imaging.readers import read_mask, read_volume
from lib.imaging.studies import StudiesFolder
from lib.imaging.study_files import LABEL_ENDINGS
from lib.imaging.volume import Volume
from lib.imaging.writers import write_mask
from lib.prompts.volume_prompts import Prompts, make_prompts

LABEL_MAP_SUFFIX = ".nii.gz"


def find_cases_with_prompts(studies: str | Path, prompts: str | Path) -> list[Case]:
    """Return the images of a folder for which another folder has a file of prompts, which becomes the `label` of the case.

    A missing folder, or no image with prompts, raises UserError.
    """
    studies, prompts = Path(studies), Path(prompts)
    for folder in (studies, prompts):
        if not folder.is_dir():
            raise UserError(f"There is no folder {folder}.")
    prompt_files = {image_name(p) if p.suffix != ".json" else p.stem: p for p in sorted(prompts.iterdir()) if _is_prompt_file(p)}
    images = StudiesFolder(studies).list_images().images
    # With one folder for both, an image must not count as its own label map.
    named = [i for i in sorted(images) if i in prompt_files and prompt_files[i].resolve() != images[i].path]
    cases = [Case(i, images[i].reader_path(), prompt_files[i], {}) for i in named]
    if not cases:
        raise UserError(f"No image in {studies} has prompts in {prompts}: NAME.json or a label map NAME.nii.gz is needed for each.")
    return cases


def read_prompts(path: Path, volume: Volume, options: Options) -> dict[str, Prompts]:
    """Return the prompts of each structure by its name, in the order of the file.

    A JSON file maps names of structures to prompts as in a request to the server ("foreground", "background", "boxes", "roi",
    "absent"; voxels i, j, k). In a label map, each value is a structure, and the slices that show it are taken as painted. Raise
    UserError if the file cannot be read or its prompts are not valid.
    """
    if path.suffix == ".json":
        try:
            content = json.loads(path.read_text())
            prompts_by_name = {str(name): parse_prompts(dict(request), volume, options) for name, request in content.items()}
        except UserError:
            raise
        except (OSError, ValueError, TypeError, AttributeError) as e:
            raise PromptError(f"{path.name} does not map names of structures to prompts.") from e
    else:
        axis, labels = resolve_axis(volume, options.axis), read_mask(path, volume)
        prompts_by_name = {f"label_{v}": _prompts_from_mask(volume, labels == v, axis) for v in np.unique(labels).tolist() if v}
    if not prompts_by_name:
        raise PromptError(f"{path.name} holds no prompts.")
    return prompts_by_name


def segment_case(case: Case, out: Path, options: Options, segmenter: Segmenter) -> dict:
    """Segment one image, write the label map OUT/NAME.nii.gz and its values OUT/NAME.json, and return a report of voxel counts.

    The structures get the values 1, 2, ... in the order of the prompts. Where they overlap, the later one wins.
    """
    volume = read_volume(case.image)
    prompts_by_name = read_prompts(case.label, volume, options)
    labels = np.zeros(volume.shape, np.min_scalar_type(len(prompts_by_name)))
    values_by_name = {name: value for value, name in enumerate(prompts_by_name, 1)}
    for name, prompts in prompts_by_name.items():
        labels[segmenter.segment(volume, prompts, options).mask] = values_by_name[name]
    write_text(out / f"{case.name}.json", json.dumps(values_by_name, indent=1))
    write_mask(labels, volume, out / f"{case.name}{LABEL_MAP_SUFFIX}", dtype=labels.dtype)
    return {"voxels": {name: int((labels == v).sum()) for name, v in values_by_name.items()}}


def run_cases(
    cases: list[Case], out: Path, options: Options, execute: Executor, progress: Callable[..., Iterable], resume: bool = True
) -> Iterator[dict]:
    """Return the reports of cases as they are finished; with `resume`, cases whose label map exists in `out` are left out.

    For `execute` and `progress` see `lib.evaluation.distribute.process_unfinished`.
    """
    out.mkdir(parents=True, exist_ok=True)

    def is_finished(case: Case) -> bool:
        return resume and (out / f"{case.name}{LABEL_MAP_SUFFIX}").is_file()

    return process_unfinished(cases, is_finished, partial(_make_worker, out, options), execute, progress)


def _make_worker(out: Path, options: Options) -> Worker:
    """Return a worker that segments cases one after the other with one engine."""
    segmenter = Segmenter()
    return partial(report_case, process=lambda case: segment_case(case, out, options, segmenter))


def _prompts_from_mask(volume: Volume, mask: np.ndarray, axis: int) -> Prompts:
    """Return the non-empty slices of a mask, bool (I, J, K), as painted slices along an axis."""
    slices = np.flatnonzero(mask.any(tuple(a for a in range(3) if a != axis)))
    return make_prompts(volume, masks={int(t): mask.take(t, axis) for t in slices}, axis=axis)


def _is_prompt_file(path: Path) -> bool:
    return path.is_file() and (path.suffix == ".json" or path.name.lower().endswith(LABEL_ENDINGS)) and path.name != "dataset.json"
