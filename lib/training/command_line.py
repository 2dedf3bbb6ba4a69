"""The commands `pack`, `train`, `train-corrections`, `train-tracking`, `train-volume` and `calibrate`, and the arguments of `finetune`.

What they need is imported when they run.
"""

import logging
from argparse import ArgumentParser, Namespace
from pathlib import Path

_VALIDATED_STRUCTURES = 24

PACK_EXAMPLES = (
    "python main.py pack /data/Task09_Spleen --out runs/packed",
    "python main.py pack labelled unlabelled --out runs/packed",
)
TRAIN_EXAMPLES = (
    "python main.py train --data runs/packed --minutes 600 --out runs/next",
    "python main.py train --data runs/packed --minutes 9 --device cuda --compile --out runs/gpu",
    "python main.py train --data runs/packed --sheet sheet.png",
    "torchrun --nproc-per-node=4 main.py train --data runs/packed --minutes 60 --device cuda --out runs/four_gpus",
)
CORRECTION_EXAMPLES = (
    "python main.py train-corrections --generated 20 --minutes 2 --out runs/corrections",
    "python main.py train-corrections --labelled /data/Task04_Hippocampus --unlabelled /data/images --minutes 240 --out runs/corrections",
)
TRACKING_EXAMPLES = (
    "python main.py train-tracking --generated 20 --minutes 2 --out runs/tracking",
    "python main.py train-tracking --labelled /data/Task04_Hippocampus --unlabelled /data/images --minutes 240 --out runs/tracking",
)
VOLUME_EXAMPLES = (
    "python main.py train-volume --generated 20 --minutes 2 --out runs/volume",
    "python main.py train-volume --labelled /data/Task04_Hippocampus --unlabelled /data/images --minutes 240 --out runs/volume",
)
FINETUNE_EXAMPLES = (
    "python main.py finetune --data sample-data --epochs 2",
    "python main.py finetune --data /data/Task09_Spleen --checkpoint tiny",
    "python main.py finetune --data /data/studies --parts lora --minutes 60",
)
CALIBRATE_EXAMPLES = (
    "python main.py calibrate --checkpoint tiny --data /data/Task09_Spleen",
    "python main.py calibrate --checkpoint runs/next/model.safetensors --ends",
)


def add_pack_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of the command `pack`."""
    folders_help = "folders in the layout of the Medical Segmentation Decathlon; rows of their dataset.json may lack a label"
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help=folders_help)
    parser.add_argument("--out", type=Path, required=True, help="the packed folder; an interrupted pack is gone on with")


def add_train_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of the command `train`."""
    out_help = "folder for weights, state, log and curves; an interrupted run in it is resumed"
    parser.add_argument("--out", default="runs/train", help=out_help)
    parser.add_argument("--data", metavar="DIR", help="real volumes, packed by the command pack (default: generated clips only)")
    parser.add_argument("--minutes", type=float, default=60.0, help="duration of the run, with what was done before an interruption")
    parser.add_argument("--start", default="embedded", help="name or path of the checkpoint to start from (default: %(default)s)")
    share_help = "share of the start in the weights that are written, from 0 to 1 (default: %(default)s)"
    parser.add_argument("--start-share", type=float, default=0.5, help=share_help)
    parser.add_argument("--rate", type=float, default=4e-4, help="highest learning rate (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", action="store_true", help="compile the image encoder: a minute, then faster steps on a GPU")
    validate_help = "labelled volumes (Decathlon layout); those of the patients that pack holds back are segmented for validation"
    parser.add_argument("--validate", metavar="DIR", help=validate_help)
    parser.add_argument("--check-every", type=int, default=0, metavar="STEPS", help="validate every STEPS steps, not only at the end")
    parser.add_argument("--sheet", metavar="PNG", help="do not train: only save a picture of training clips")


def add_session_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of the commands `train-corrections`, `train-tracking` and `train-volume`."""
    parser.add_argument("--out", type=Path, required=True, help="folder for samples, weights and log; an interrupted run in it is resumed")
    layout = "folders in the layout of the Medical Segmentation Decathlon"
    parser.add_argument("--labelled", nargs="+", type=Path, default=[], metavar="DIR", help=layout)
    parser.add_argument("--unlabelled", nargs="+", type=Path, default=[], metavar="DIR", help=f"{layout}, of which only the images are used")
    parser.add_argument("--generated", type=int, default=400, help="number of generated volumes (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=60.0, help="duration of the run, with what was done before an interruption")
    parser.add_argument("--start", type=Path, metavar="FILE", help="weights to start from (default: new ones)")
    parser.add_argument("--seed", type=int, default=1)


def add_finetune_arguments(parser: ArgumentParser, versions: Path) -> None:
    """Add the arguments of the command `finetune`; `versions` is the default folder of versions."""
    parser.add_argument("--data", required=True, help="Decathlon layout (dataset.json) or a MONAI Label datastore with submitted labels")
    parser.add_argument("--checkpoint", default="embedded", help="name or path of the checkpoint to fine-tune (default: %(default)s)")
    parser.add_argument("--versions", type=Path, default=versions, help="folder of the fine-tuned versions")
    parts_help = "weights to train: decoder (all but the image encoder), lora (low-rank updates of the encoder too) or all"
    parser.add_argument("--parts", default="decoder", help=parts_help)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=60, help="training steps in an epoch")
    parser.add_argument("--rate", type=float, default=2e-4, help="learning rate")
    parser.add_argument("--minutes", type=float, default=0, help="time limit in minutes (default: none)")
    parser.add_argument("--val-share", type=float, default=0.25, help="fraction of the volumes that are used for validation only")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--window", default="auto")


def add_calibrate_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of the command `calibrate`."""
    checkpoint_help = "name or path; the estimate is written into a .safetensors file, or into a JSON file beside a .pt file"
    parser.add_argument("--checkpoint", required=True, help=checkpoint_help)
    parser.add_argument("--data", help="labelled volumes, as for finetune (default: generated ones)")
    parser.add_argument("--ends", action="store_true", help="first fit where tracking stops, too")
    parser.add_argument("--most", type=int, default=60, help="largest number of structures to use (default: %(default)s)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--window", default="auto")


def run_pack(options: Namespace) -> None:
    """Run the command `pack`."""
    from lib.training.volume_pack import pack

    logging.info("Packed %d volumes into %s.", pack(options.folders, options.out), options.out)


def run_train(options: Namespace) -> None:
    """Run the command `train`."""
    from lib.common.errors import OptionError
    from lib.engine.options import Options
    from lib.imaging.datasets import find_cases
    from lib.model.device import resolve_device
    from lib.training.clip_sheet import draw_sheet
    from lib.training.clip_source import ClipSource
    from lib.training.distributed import Workers
    from lib.training.loop import Settings, Training
    from lib.training.packed_volumes import PackedVolumes
    from lib.training.validation import VolumeCheck
    from lib.training.volume_pack import held_back_cases

    if not 0 < options.minutes < float("inf"):
        raise OptionError("minutes must be a number above 0.")
    if not 0 <= options.start_share <= 1:
        raise OptionError("start-share must lie between 0 and 1.")
    device = Workers.join(str(resolve_device(options.device))).device
    clips = ClipSource(device, PackedVolumes(options.data, device) if options.data else None)
    if options.sheet:
        logging.info("Drew %s", draw_sheet(options.sheet, clips, options.seed))
        return
    check = None
    if options.validate:
        cases = held_back_cases(find_cases(options.validate))
        validate = VolumeCheck(cases, Options(device=str(device)), max_structures=_VALIDATED_STRUCTURES)

        def check(training: Training) -> dict[str, float]:
            return validate(training.export())

    settings = Settings(
        options.out, start=options.start, minutes=options.minutes, device=str(device), seed=options.seed, rate=options.rate,
        start_share=options.start_share, compiled=options.compile, check_every=options.check_every,
    )  # fmt: skip
    logging.info("Wrote %s.", Training(settings, clips, check=check).run())


def run_train_corrections(options: Namespace) -> None:
    """Run the command `train-corrections`."""
    from lib.training.correction_training import CorrectionTraining

    _run_sessions(CorrectionTraining, options)


def run_train_tracking(options: Namespace) -> None:
    """Run the command `train-tracking`."""
    from lib.training.tracking_training import TrackingTraining

    _run_sessions(TrackingTraining, options)


def run_train_volume(options: Namespace) -> None:
    """Run the command `train-volume`."""
    from lib.training.volume_training import VolumeTraining

    _run_sessions(VolumeTraining, options)


def _run_sessions(training: type, options: Namespace) -> None:
    from lib.training.session_training import SessionSettings

    settings = SessionSettings(
        options.out, tuple(options.labelled), tuple(options.unlabelled), options.generated, options.minutes, options.start, options.seed
    )
    logging.info("Wrote %s.", training(settings).run())


def run_calibrate(options: Namespace) -> None:
    """Run the command `calibrate`."""
    from lib.engine.options import Options
    from lib.imaging.datasets import find_cases
    from lib.model import checkpoints
    from lib.model.device import resolve_device
    from lib.training import estimator_calibration, object_end_calibration

    checkpoint, device = checkpoints.find(options.checkpoint), str(resolve_device(options.device))
    checkpoints.verify(checkpoint)
    if options.ends:
        object_end_calibration.calibrate(checkpoint.path, device=device)
    if options.data:
        engine_options = Options(checkpoint=options.checkpoint, device=device, window=options.window)
        structures = object_end_calibration.read_structures(find_cases(options.data), engine_options, options.most)
        correlation = estimator_calibration.fit(checkpoint.path, structures, engine_options, len(structures))
    else:
        correlation = estimator_calibration.calibrate(checkpoint.path, device=device)
    logging.info("Expected and true slice IoU correlate by %.2f on volumes that were not learned from.", correlation)
