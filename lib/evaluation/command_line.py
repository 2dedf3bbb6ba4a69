"""The commands `evaluate` and `batch`: their arguments, and what they run."""

import logging
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
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
    "python main.py evaluate --protocol rounds --strategy estimator --data DIR --engine ray --out runs/estimator",
)
BATCH_EXAMPLES = (
    "python main.py batch --studies /data/nifti --prompts /data/prompts",
    "python main.py batch --studies /data/nifti --prompts /data/painted --out /data/masks --engine ray --address auto",
    'a case\'s prompts, /data/prompts/ct_7.json: {"liver": {"foreground": [[80, 62, 40]], "background": [[30, 62, 40]]},',
    '                                           "spleen": {"boxes": [[[60, 40, 20], [100, 90, 20]]], "absent": [3]}}',
    "or a label map /data/painted/ct_7.nii.gz: slices that are not empty are taken as painted, each value is a structure",
)


def add_evaluate(c: ArgumentParser) -> None:
    c.add_argument("--protocol", required=True, help="he, shen, dong (the papers'), or rounds: annotate, propagate, choose a slice")
    c.add_argument("--mode", default="described", help="described (the paper's words) or published (what the authors' code computes)")
    c.add_argument("--data", required=True, help="Decathlon, BTCV, AbdomenCT-1K, FLARE22, BraTS2020, CT-ORG folder, or a datastore")
    c.add_argument("--download", action="store_true", help="fetch a missing Decathlon task, named by the last part of --data")
    c.add_argument("--out", type=Path, required=True, help="folder for results.csv, summary.md and figures")
    c.add_argument("--checkpoint", default="embedded", help="name or path")
    c.add_argument("--method", default="app", metavar="NAMES",
                   help="app (this engine), official, builtin; of several, the first gets the clicks, the others the same")  # fmt: skip
    c.add_argument("--settings", default="", help="of the protocol, separated by ';' (default: the paper's)")
    c.add_argument("--strategy", default="oracle", help="which slice is next, in the protocol rounds")
    c.add_argument("--labels", default="", help="names of structures, comma-separated (default: all)")
    c.add_argument("--cases", default="", help="names of cases, comma-separated (default: all)")
    c.add_argument("--limit", type=int, help="only the first so many cases")
    c.add_argument("--window", default="protocol", help="see segment; default: the paper's")
    c.add_argument("--axis", default="auto", help="slicing axis: auto, 0, 1 or 2")
    c.add_argument("--channel", type=int, help="of 4D images")
    c.add_argument("--seed", type=int, default=1)
    _add_common(c)


def add_batch(c: ArgumentParser) -> None:
    c.add_argument("--studies", required=True, help="folder of images")
    c.add_argument("--prompts", required=True, help="folder with NAME.json or a label map for each image, see the examples")
    c.add_argument("--out", type=Path, help="folder of label maps (default: labels/original of the studies, where servers find them)")
    c.add_argument("--checkpoint", default="embedded", help="name or path")
    c.add_argument("--window", default="auto")
    c.add_argument("--axis", default="auto", help="slicing axis: auto, 0, 1 or 2")
    _add_common(c)


def _add_common(c: ArgumentParser) -> None:
    c.add_argument("--device", default="auto")
    c.add_argument("--resume", action="store_true", default=True, help="leave out what is finished (default)")
    c.add_argument("--no-resume", dest="resume", action="store_false", help="do everything again")
    c.add_argument("--engine", default="local", help="local, or ray: cases over the GPUs of one or many machines")
    c.add_argument("--address", help="of a running Ray cluster (default: one on this machine)")
    c.add_argument("--workers", type=int, help="of the Ray cluster on this machine (default: all GPUs or cores)")


def evaluate(options: Namespace, methods: dict[str, Callable[[], Callable]]) -> int:
    """Runs `evaluate`; 1 if cases failed.

    Args:
        methods: by name, what gives the class of a method (imported when it is asked for).

    Raises:
        UserError: wrong input.
    """
    from lib.engine.options import Options
    from lib.evaluation.case_evaluation import Settings
    from lib.evaluation.dataset_layouts import chosen, read_dataset
    from lib.evaluation.distribute import executor
    from lib.evaluation.report import write_report
    from lib.evaluation.run import Store, run, work_for
    from lib.model import checkpoints
    from lib.model.device import resolve_device

    names = _split(options.method)
    unknown = [n for n in names if n not in methods]
    if unknown or not names:
        raise OptionError(f"Unknown method {', '.join(unknown)!r}: use {', '.join(methods)}.")
    checkpoint = checkpoints.find(options.checkpoint)
    checkpoints.verify(checkpoint)
    settings = Settings(
        options.protocol, options.mode, names, options.checkpoint, checkpoints.sha256(checkpoint.path), options.window, options.axis,
        _split(options.labels), _split(options.settings, ";"), options.strategy, options.channel, options.seed,
    )  # fmt: skip
    if options.limit is not None and options.limit < 1:
        raise OptionError("--limit must be at least 1.")
    data = read_dataset(options.data, options.download)
    cases = chosen(data.cases, _split(options.cases), options.limit)
    resolve_device(options.device)
    execute = executor(options.engine, options.address, options.workers)
    store = Store(options.out, settings, str(Path(options.data).resolve()), options.resume)
    work = work_for(settings, [methods[n]() for n in names], Options(checkpoint=options.checkpoint, device=options.device))
    reports = run(cases, store, work, execute, partial(tqdm, desc="cases"))
    path = write_report(options.out, settings, data.name, reports)
    failed = sum("error" in r for r in reports)
    logger.info("%d of %d cases finished; see %s.", len(reports) - failed, len(reports), path)
    return int(failed > 0)


def batch(options: Namespace) -> int:
    """Runs `batch`; 1 if images failed.

    Raises:
        UserError: wrong input.
    """
    from lib.engine.options import Options
    from lib.evaluation.batch import find_work, run
    from lib.evaluation.distribute import executor
    from lib.model import checkpoints

    checkpoints.verify(checkpoints.find(options.checkpoint))
    cases = find_work(options.studies, options.prompts)
    out = options.out or Path(options.studies) / "labels" / "original"
    chosen = Options(checkpoint=options.checkpoint, device=options.device, window=options.window, axis=options.axis)
    execute = executor(options.engine, options.address, options.workers)
    failed = 0
    for report in run(cases, out, chosen, execute, partial(tqdm, desc="images"), options.resume):
        if "error" in report:
            failed += 1
            logger.warning("%s failed: %s", report["case"], report["error"])
    logger.info("%d images failed; label maps are in %s.", failed, out)
    return int(failed > 0)


def _split(text: str, by: str = ",") -> tuple[str, ...]:
    return tuple(p.strip() for p in text.split(by) if p.strip())
