"""The arguments of the commands `evaluate` and `batch`, and the functions that run them."""

import logging
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from lib.common.errors import OptionError

logger = logging.getLogger(__name__)

EVALUATE_EXAMPLES = (
    "python main.py evaluate --protocol he --mode described --data /data/Task09_Spleen --checkpoint large --out runs/he",
    "python main.py evaluate --protocol dong --mode published --data DIR --labels liver --limit 5 --out runs/dong",
    "python main.py evaluate --protocol shen --data /data/Task09_Spleen --download --method official --out runs/shen",
    "python main.py evaluate --protocol rounds --data DIR --method app,official,builtin --out runs/rounds",
    "python main.py evaluate --protocol cvpr25 --data DIR --method app,official,builtin,classical --out runs/cvpr25",
    "python main.py evaluate --protocol isvalidate --edits 100 --data /data/Task03_Liver --method app,classical --out runs/clicks",
    "python main.py evaluate --protocol rounds --settings painted --data DIR --method app,official,fill --out runs/painted",
    "python main.py evaluate --protocol rounds --strategy estimator --data DIR --engine ray --out runs/estimator",
)
BATCH_EXAMPLES = (
    "python main.py batch --studies /data/nifti --prompts /data/prompts",
    "python main.py batch --studies /data/nifti --prompts /data/painted --out /data/masks --engine ray --address auto",
    'a case\'s prompts, /data/prompts/ct_7.json: {"liver": {"foreground": [[80, 62, 40]], "background": [[30, 62, 40]]},',
    '                                           "spleen": {"boxes": [[[60, 40, 20], [100, 90, 20]]], "absent": [3]}}',
    "or a label map /data/painted/ct_7.nii.gz: slices that are not empty are taken as painted, each value is a structure",
)


def add_evaluate_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of the command `evaluate`."""
    protocol_help = (
        "he, shen, dong (the papers'), rounds (annotate, propagate, choose a slice), cvpr25 (a box, then five clicks on the largest "
        "error), or isvalidate (clicks on random wrong voxels)"
    )
    parser.add_argument("--protocol", required=True, help=protocol_help)
    parser.add_argument("--mode", default="described", help="described (the paper's words) or published (what the authors' code computes)")
    parser.add_argument("--data", required=True, help="Decathlon, BTCV, AbdomenCT-1K, FLARE22, BraTS2020, CT-ORG folder, or a datastore")
    parser.add_argument("--download", action="store_true", help="fetch a missing Decathlon task, named by the last part of --data")
    parser.add_argument("--out", type=Path, required=True, help="folder for results.csv, summary.md and figures")
    parser.add_argument("--checkpoint", default="embedded", help="name or path")
    method_help = (
        "any of app (this engine), official, builtin, classical (random walker), fill (between painted slices), comma-separated; in "
        "cvpr25 and isvalidate each is clicked by its own errors, in the other protocols the first gets the clicks, the others the same"
    )
    parser.add_argument("--method", default="app", metavar="NAMES", help=method_help)
    parser.add_argument("--settings", default="", help="settings of the protocol, separated by ';' (default: the paper's)")
    parser.add_argument("--strategy", default="oracle", help="how the protocol rounds chooses the next slice")
    tolerance_help = "of the surface Dice in mm (default: 2; isvalidate has its authors' for tasks of the Decathlon)"
    parser.add_argument("--tolerance", type=float, metavar="MM", help=tolerance_help)
    parser.add_argument("--edits", type=int, help="clicks after the first one in isvalidate (default: 20; its authors make 100)")
    parser.add_argument("--labels", default="", help="names of structures, comma-separated (default: all)")
    parser.add_argument("--cases", default="", help="names of cases, comma-separated (default: all)")
    parser.add_argument("--limit", type=int, help="number of cases to evaluate (default: all)")
    parser.add_argument("--window", default="protocol", help="intensity window, see the command segment (default: the paper's)")
    parser.add_argument("--axis", default="auto", help="slicing axis: auto, 0, 1 or 2")
    parser.add_argument("--channel", type=int, help="channel of 4D images to read")
    parser.add_argument("--seed", type=int, default=1)
    _add_common_arguments(parser)


def add_batch_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of the command `batch`."""
    parser.add_argument("--studies", required=True, help="folder of images")
    parser.add_argument("--prompts", required=True, help="folder with NAME.json or a label map for each image, see the examples")
    parser.add_argument("--out", type=Path, help="folder of label maps (default: labels/original of the studies, where servers find them)")
    parser.add_argument("--checkpoint", default="embedded", help="name or path")
    parser.add_argument("--window", default="auto")
    parser.add_argument("--axis", default="auto", help="slicing axis: auto, 0, 1 or 2")
    _add_common_arguments(parser)


def _add_common_arguments(parser: ArgumentParser) -> None:
    """Add the arguments that both commands have."""
    parser.add_argument("--device", default="auto")
    parser.add_argument("--resume", action="store_true", default=True, help="leave out what is finished (default)")
    parser.add_argument("--no-resume", dest="resume", action="store_false", help="do everything again")
    parser.add_argument("--engine", default="local", help="local, or ray: cases over the GPUs of one or many machines")
    parser.add_argument("--address", help="address of a running Ray cluster (default: start one on this machine)")
    parser.add_argument("--workers", type=int, help="number of workers on this machine (default: one for each GPU or core)")


def run_evaluate(options: Namespace, load_method_class: dict[str, Callable[[], Callable]]) -> int:
    """Run the command `evaluate`, and return the exit code: 1 if cases failed, else 0. Wrong input raises UserError.

    `load_method_class` holds for each name of a method a function that imports and returns its class.
    """
    from lib.engine.options import Options
    from lib.evaluation.case_evaluation import EvaluationSettings
    from lib.evaluation.dataset_layouts import detect_dataset, select_cases
    from lib.evaluation.distribute import choose_executor
    from lib.evaluation.metrics import TOLERANCE_MM
    from lib.evaluation.protocols.isvalidate import DEFAULT_EDITS, choose_tolerance_mm
    from lib.evaluation.report import write_report
    from lib.evaluation.run import ResultStore, make_case_worker, run_cases
    from lib.model import checkpoints
    from lib.model.device import resolve_device

    names = _split(options.method)
    unknown = [n for n in names if n not in load_method_class]
    if unknown or not names:
        raise OptionError(f"Unknown method {', '.join(unknown)!r}: use {', '.join(load_method_class)}.")
    checkpoint = checkpoints.find(options.checkpoint)
    checkpoints.verify(checkpoint)
    settings = EvaluationSettings(
        options.protocol, options.mode, names, options.checkpoint, checkpoints.sha256(checkpoint.path), options.window, options.axis,
        _split(options.labels), _split(options.settings, ";"), options.strategy, options.channel, options.seed,
        TOLERANCE_MM if options.tolerance is None else options.tolerance, DEFAULT_EDITS if options.edits is None else options.edits,
    )  # fmt: skip
    if options.limit is not None and options.limit < 1:
        raise OptionError("--limit must be at least 1.")
    dataset = detect_dataset(options.data, options.download)
    cases = select_cases(dataset.cases, _split(options.cases), options.limit)
    if options.protocol == "isvalidate" and options.tolerance is None:
        settings = replace(settings, tolerance_mm=choose_tolerance_mm(dataset.name, settings.tolerance_mm))
    resolve_device(options.device)  # So that an unknown device is refused before the run starts.
    execute = choose_executor(options.engine, options.address, options.workers)
    store = ResultStore(options.out, settings, str(Path(options.data).resolve()), options.resume)
    engine_options = Options(checkpoint=options.checkpoint, device=options.device)
    worker_factory = partial(make_case_worker, settings, [load_method_class[n]() for n in names], engine_options)
    reports = run_cases(cases, store, worker_factory, execute, partial(tqdm, desc="cases"))
    path = write_report(options.out, settings, dataset.name, reports)
    failed = sum("error" in r for r in reports)
    logger.info("%d of %d cases finished; see %s.", len(reports) - failed, len(reports), path)
    return int(failed > 0)


def run_batch(options: Namespace) -> int:
    """Run the command `batch`, and return the exit code: 1 if images failed, else 0. Wrong input raises UserError."""
    from lib.engine.options import Options
    from lib.evaluation.batch import find_cases_with_prompts, run_cases
    from lib.evaluation.distribute import choose_executor
    from lib.model import checkpoints

    checkpoints.verify(checkpoints.find(options.checkpoint))
    cases = find_cases_with_prompts(options.studies, options.prompts)
    out = options.out or Path(options.studies) / "labels" / "original"
    engine_options = Options(checkpoint=options.checkpoint, device=options.device, window=options.window, axis=options.axis)
    execute = choose_executor(options.engine, options.address, options.workers)
    reports = run_cases(cases, out, engine_options, execute, partial(tqdm, desc="images"), options.resume)
    failed = sum("error" in report for report in reports)
    logger.info("%d images failed; label maps are in %s.", failed, out)
    return int(failed > 0)


def _split(text: str, separator: str = ",") -> tuple[str, ...]:
    """Return the parts of a list in an argument, without blanks and without empty parts."""
    return tuple(part.strip() for part in text.split(separator) if part.strip())
