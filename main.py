"""Command line of the SAM 2 app; `python main.py COMMAND --help` explains each command."""

import argparse
import json
import logging
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit status. Wrong input prints one sentence, not a traceback."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    parser = _parser()
    options = parser.parse_args(arguments)
    from lib.common.errors import UserError

    try:
        return options.run(options) or 0
    except UserError as e:
        parser.exit(2, f"error: {e}\n")
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="main.py", description="Interactive segmentation of CT and MR volumes with SAM 2.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name, run, help, examples):
        c = commands.add_parser(
            name, help=help, description=help, epilog="examples:\n  " + "\n  ".join(examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        c.set_defaults(run=run)
        return c

    c = add("serve", _serve, "start the server(s) on the sample data or on your own", [
        "python main.py serve", "python main.py serve --studies /data/nifti --port 8000 --conf labels spleen,liver",
    ])  # fmt: skip
    c.add_argument("--studies", help="folder of images or DICOMweb address (default: the sample data)")
    c.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    c.add_argument("--port", type=int, default=8000)
    c.add_argument("--conf", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"), help="passed to the app")

    c = add("sample-data", _samples, "make the sample volumes", ["python main.py sample-data"])
    c.add_argument("--out", type=Path, default=ROOT / "sample-data")

    c = add("download", _download, "fetch a published checkpoint", [
        "python main.py download tiny", "python main.py download large", "python main.py download --list",
    ])  # fmt: skip
    c.add_argument("name", nargs="?", help="see --list")
    c.add_argument("--list", action="store_true", help="list the checkpoints and where they lie")

    c = add("segment", _segment, "segment one structure of one image", [
        "python main.py segment ct.nii.gz --point 80,62,40 -o liver.nii.gz --preview liver.png",
        "python main.py segment series_folder --box 60,40,20,100,90,20 --negative 80,80,20 -o out.seg.nrrd",
    ])  # fmt: skip
    c.add_argument("image", help="NIfTI, NRRD, MHA, DICOM file or folder of one DICOM series")
    numbers = "i,j,k"
    c.add_argument("--point", action="append", default=[], metavar=numbers, help="voxel inside (repeatable)")
    c.add_argument("--negative", action="append", default=[], metavar=numbers, help="voxel outside (repeatable)")
    c.add_argument("--box", action="append", default=[], metavar="i,j,k,i,j,k", help="two corners on one slice (repeatable)")
    c.add_argument("--roi", metavar="i,j,k,i,j,k", help="two corners of the region that holds the structure")
    c.add_argument("--mask", help="label map of the image's shape; its non-empty slices are taken as painted")
    c.add_argument("--absent", action="append", type=int, default=[], metavar="SLICE", help="the structure is not on this slice")
    c.add_argument("-o", "--out", required=True, help=".nii.gz, .nii, .nrrd, .seg.nrrd, .mha")
    c.add_argument("--preview", metavar="PNG", help="draw slices with the contour and the clicks")
    c.add_argument("--checkpoint", default="embedded")
    c.add_argument("--device", default="auto")
    c.add_argument("--window", default="auto", help="auto, abdomen, lung, bone, brain, mediastinum, full, or low,high")
    c.add_argument("--axis", default="auto", help="slicing axis: auto, 0, 1 or 2")
    c.add_argument("--direction", default="both", help="both, forward or backward")
    c.add_argument("--z-range", metavar="low,high", help="first and last slice")
    c.add_argument("--components", default="annotated", help="annotated, largest or all")
    c.add_argument("--channel", type=int, help="of a 4D image")

    from lib.evaluation import command_line

    command_line.add_evaluate(add("evaluate", _evaluate, "repeat the papers' evaluations on labelled volumes", command_line.EVALUATE_EXAMPLES))
    command_line.add_batch(add("batch", _batch, "segment all images of a folder from prompts in files", command_line.BATCH_EXAMPLES))

    c = add("train", _train, "train the small model on generated volumes, from scratch or from a checkpoint", [
        "python main.py train --out runs/first", "python main.py train --out runs/quick --scale 0.01",
        "python main.py train --out runs/next --start runs/first/model.safetensors --images DIR_OF_NIFTI",
        "python main.py train --sheet sheet.png",
        "torchrun --nproc-per-node=4 main.py train --out runs/four_gpus",
    ])  # fmt: skip
    c.add_argument("--out", default="runs/train", help="folder for checkpoints, log and curves; a run there is gone on with")
    c.add_argument("--start", metavar="FILE", help="weights to begin with (default: random)")
    c.add_argument("--images", metavar="DIR", help="real NIfTI images without labels; a fifth of the clips is cut from them")
    c.add_argument("--validate", metavar="DIR", help="labelled volumes (Decathlon layout) to check on after each phase")
    c.add_argument("--check-every", type=int, default=0, metavar="STEPS", help="check more often")
    c.add_argument("--seed", type=int, default=1)
    c.add_argument("--scale", type=float, default=1.0, help="multiplies the number of steps")
    c.add_argument("--device", default="auto")
    c.add_argument("--sheet", metavar="PNG", help="only draw a sheet of training clips")

    c = add("finetune", _finetune, "fine-tune a checkpoint on labelled volumes", [
        "python main.py finetune --data sample-data --epochs 2", "python main.py finetune --data /data/Task09_Spleen --checkpoint tiny",
        "python main.py finetune --data /data/studies --parts lora --minutes 60",
    ])  # fmt: skip
    c.add_argument("--data", required=True, help="Decathlon layout (dataset.json) or a MONAI Label datastore with submitted labels")
    c.add_argument("--checkpoint", default="embedded", help="what to start from: name or path")
    c.add_argument("--versions", type=Path, default=ROOT / "apps" / "sam2" / "model" / "versions", help="where versions are kept")
    c.add_argument("--parts", default="decoder", help="what learns: decoder (the encoder stays as it is), lora or all")
    c.add_argument("--epochs", type=int, default=8)
    c.add_argument("--steps", type=int, default=60, help="of an epoch")
    c.add_argument("--rate", type=float, default=2e-4, help="learning rate")
    c.add_argument("--minutes", type=float, default=0, help="time limit (default: none)")
    c.add_argument("--val-share", type=float, default=0.25, help="share of the volumes that are only checked on")
    c.add_argument("--seed", type=int, default=1)
    c.add_argument("--device", default="auto")
    c.add_argument("--window", default="auto")

    c = add("calibrate", _calibrate, "fit the estimate of slice quality, which chooses the next slice, to a checkpoint", [
        "python main.py calibrate --checkpoint tiny --data /data/Task09_Spleen",
        "python main.py calibrate --checkpoint runs/next/model.safetensors",
    ])  # fmt: skip
    c.add_argument("--checkpoint", required=True, help="name or path; the estimate is written into a .safetensors, beside a .pt")
    c.add_argument("--data", help="labelled volumes, as for finetune (default: generated ones)")
    c.add_argument("--most", type=int, default=60, help="structures of the data to learn from (default: %(default)s)")
    c.add_argument("--device", default="auto")
    c.add_argument("--window", default="auto")

    c = add("versions", _versions, "list fine-tuned versions, or choose the one to serve", [
        "python main.py versions", "python main.py versions --serve v0002", "python main.py versions --serve base",
    ])  # fmt: skip
    c.add_argument("--checkpoint", default="embedded", help="the checkpoint they come from")
    c.add_argument("--versions", type=Path, default=ROOT / "apps" / "sam2" / "model" / "versions")
    c.add_argument("--serve", metavar="NAME", help="version to serve from now on; base: none of them")
    return parser


def _serve(options) -> int:
    from lib.serving.launch import serve

    return serve(options.studies, options.host, options.port, options.conf)


def _samples(options) -> None:
    from lib.samples.sample_data import make_samples

    make_samples(options.out)
    logging.info("The samples are in %s.", options.out)


def _download(options) -> None:
    from lib.common.errors import CheckpointError
    from lib.model import checkpoints
    from lib.model.download import download

    if options.list or not options.name:
        for c in checkpoints.KNOWN.values():
            size = f"{c.bytes / 1e6:.0f} MB" if c.bytes else ""
            sys.stdout.write(f"{c.name:12} {c.image_size:5} px {size:>8}  {'here' if c.path.is_file() else 'not here'}\n")
        return
    if options.name not in checkpoints.KNOWN:
        raise CheckpointError(f"Unknown checkpoint {options.name!r}: use {', '.join(checkpoints.KNOWN)}.")
    logging.info("%s is at %s.", options.name, download(checkpoints.KNOWN[options.name]))


def _segment(options) -> None:
    from functools import partial

    from tqdm import tqdm

    from lib.engine.request import parse_options, parse_prompts
    from lib.engine.segmenter import Segmenter
    from lib.imaging.readers import read_volume
    from lib.imaging.writers import write_mask

    volume = read_volume(options.image, channel=options.channel)
    chosen = parse_options({k: getattr(options, k) for k in
                         ("checkpoint", "device", "window", "axis", "direction", "z_range", "components")})  # fmt: skip
    pairs = [_numbers(b, 6) for b in options.box]
    region = _numbers(options.roi, 6) if options.roi else []
    request = {
        "foreground": [_numbers(p, 3) for p in options.point],
        "background": [_numbers(p, 3) for p in options.negative],
        "boxes": [[b[:3], b[3:]] for b in pairs],
        "roi": [region[n] for n in (0, 3, 1, 4, 2, 5)] if region else [],
        "absent": options.absent,
    }
    prompts = parse_prompts(request, volume, chosen, painted=options.mask)
    result = Segmenter().segment(volume, prompts, chosen, partial(tqdm, leave=False))
    path = write_mask(result.mask, volume, options.out)
    logging.info("%d voxels on %s; seconds: %s", result.mask.sum(), path, {k: round(v, 2) for k, v in result.seconds.items()})
    if options.preview:
        from lib.engine.preview import contact_sheet
        from lib.imaging.frames import Frames

        frames = Frames.of(volume, window=chosen.window, axis=chosen.axis)
        logging.info("Preview: %s", contact_sheet(frames, result.mask, prompts, options.preview))


def _evaluate(options) -> int:
    from importlib import import_module

    from lib.evaluation.command_line import evaluate

    places = {"app": ("lib.evaluation.methods.app", "App"), "official": ("benchmarks.peers", "OfficialMethod"),
              "builtin": ("benchmarks.peers", "BuiltinMethod")}  # fmt: skip
    return evaluate(options, {k: lambda m=m, n=n: getattr(import_module(m), n) for k, (m, n) in places.items()})


def _batch(options) -> int:
    from lib.evaluation.command_line import batch

    return batch(options)


def _train(options) -> None:
    from lib.engine.options import Options
    from lib.model.device import resolve_device
    from lib.training import estimator_calibration, object_end_calibration, validation
    from lib.training.clip_sheet import draw_sheet
    from lib.training.loop import Settings, Training
    from lib.training.supervoxels import RealImages

    if options.sheet:
        images = RealImages.read(options.images) if options.images else None
        logging.info("Drew %s", draw_sheet(options.sheet, options.seed, images=images))
        return
    device = str(resolve_device(options.device))
    volumes = validation.VolumeCheck(_cases(options.validate), Options(device=device)) if options.validate else None

    def check(training):
        figures = validation.on_generated(training)
        if volumes:
            figures |= {f"real_{k}": v for k, v in volumes(training.export("candidate.safetensors")).items()}
        return figures

    settings = Settings(
        options.out, start=options.start, images=options.images, seed=options.seed, scale=options.scale, device=device,
        check_every=options.check_every,
    )  # fmt: skip
    training = Training(settings, check=check)
    path = training.run()
    if training.workers.first:
        found = object_end_calibration.calibrate(path, device=device)
        estimator_calibration.calibrate(path, device=device)
        found = {f"{drop:g}, {gain:g}": v for (drop, gain), v in found.items()}
        path.with_name("presence.json").write_text(json.dumps(found, indent=1))
        logging.info("Wrote %s.", path)


def _finetune(options) -> None:
    from lib.model.device import resolve_device
    from lib.model.versions import Versions
    from lib.training.fine_tuning import FineTuning, fine_tune

    chosen = FineTuning(
        parts=options.parts, epochs=options.epochs, steps=options.steps, rate=options.rate, minutes=options.minutes,
        val_share=options.val_share, seed=options.seed, device=str(resolve_device(options.device)), window=options.window,
    )  # fmt: skip
    versions = Versions(options.versions, options.checkpoint)
    fine_tune(_cases(options.data), versions, versions.folder / "runs", chosen)


def _calibrate(options) -> None:
    from lib.engine.options import Options
    from lib.imaging.datasets import find_cases
    from lib.model import checkpoints
    from lib.model.device import resolve_device
    from lib.training import estimator_calibration, object_end_calibration

    checkpoint, device = checkpoints.find(options.checkpoint), str(resolve_device(options.device))
    checkpoints.verify(checkpoint)
    if options.data:
        chosen = Options(checkpoint=options.checkpoint, device=device, window=options.window)
        made = object_end_calibration.structures_of(find_cases(options.data), chosen, options.most)
        correlation = estimator_calibration.fit(checkpoint.path, made, chosen, len(made))
    else:
        correlation = estimator_calibration.calibrate(checkpoint.path, device=device)
    logging.info("Expected and true slice IoU correlate by %.2f on volumes that were not learned from.", correlation)


def _versions(options) -> None:
    from lib.model.versions import Versions

    versions = Versions(options.versions, options.checkpoint)
    if options.serve:
        versions.serve(None if options.serve == "base" else options.serve)
    served = versions.served()
    for name in ["base", *versions.names()]:
        sys.stdout.write(f"{name}{'  served' if name == (served.stem if served else 'base') else ''}\n")


def _cases(folder: str) -> list:
    from lib.imaging.datasets import find_cases

    return find_cases(folder)


def _numbers(text: str, count: int) -> list[float]:
    from lib.common.errors import PromptError

    try:
        values = [float(v) for v in text.split(",")]
    except ValueError as e:
        raise PromptError(f"{text!r} is not a list of numbers.") from e
    if len(values) != count:
        raise PromptError(f"{text!r} holds {len(values)} numbers; {count} are needed.")
    return values


if __name__ == "__main__":
    sys.exit(main())
