"""The arguments of the commands `train`, `finetune` and `calibrate`; main.py runs them."""

from argparse import ArgumentParser
from pathlib import Path

TRAIN_EXAMPLES = (
    "python main.py train --out runs/first",
    "python main.py train --out runs/quick --scale 0.01",
    "python main.py train --out runs/next --start runs/first/model.safetensors --images DIR_OF_NIFTI",
    "python main.py train --sheet sheet.png",
    "torchrun --nproc-per-node=4 main.py train --out runs/four_gpus",
)
FINETUNE_EXAMPLES = (
    "python main.py finetune --data sample-data --epochs 2",
    "python main.py finetune --data /data/Task09_Spleen --checkpoint tiny",
    "python main.py finetune --data /data/studies --parts lora --minutes 60",
)
CALIBRATE_EXAMPLES = (
    "python main.py calibrate --checkpoint tiny --data /data/Task09_Spleen",
    "python main.py calibrate --checkpoint runs/next/model.safetensors",
)


def add_train_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of the command `train`."""
    parser.add_argument("--out", default="runs/train", help="folder for checkpoints, log and curves; an interrupted run in it is resumed")
    parser.add_argument("--start", metavar="FILE", help="checkpoint to start from (default: random weights)")
    parser.add_argument("--images", metavar="DIR", help="real NIfTI images without labels; a fifth of the clips is cut from them")
    parser.add_argument("--validate", metavar="DIR", help="labelled volumes (Decathlon layout) for validation after each phase")
    parser.add_argument("--check-every", type=int, default=0, metavar="STEPS", help="validate every STEPS steps too")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the number of steps")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--sheet", metavar="PNG", help="do not train: only save a picture of training clips")


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
    parser.add_argument("--most", type=int, default=60, help="largest number of structures to use (default: %(default)s)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--window", default="auto")
