"""Command line of the SAM 2 app; `python main.py COMMAND --help` explains each command."""

import argparse
import logging
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VERSIONS = ROOT / "apps" / "sam2" / "model" / "versions"  # default folder of fine-tuned versions


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit status. Wrong input prints one sentence instead of a traceback."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    parser = _parser()
    options = parser.parse_args(arguments)
    from lib.common.errors import UserError

    try:
        return options.run(options) or 0
    except UserError as e:
        parser.exit(2, f"error: {e}\n")
    except OSError as e:
        if e.strerror is None:  # It comes from a library, not from the operating system.
            raise
        parser.exit(2, f"error: {e.filename or 'A file'} cannot be read or written: {e.strerror}.\n")
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

    c = add("serve", _serve, "start the server on the sample data or on your own", [
        "python main.py serve", "python main.py serve --studies /data/nifti --port 8000 --conf labels spleen,liver",
    ])  # fmt: skip
    c.add_argument("--studies", help="folder of images or DICOMweb address (default: the sample data)")
    c.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    c.add_argument("--port", type=int, default=8000)
    c.add_argument("--conf", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"), help="passed to the app")
    c.add_argument("--root-path", default="", metavar="PATH", help="path like /monai under which a proxy offers the server")

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
        "python main.py segment series_folder#2 --point 80,62,40 -o second_phase.nrrd",
    ])  # fmt: skip
    c.add_argument("image", help="NIfTI, NRRD, MHA, DICOM file or folder; #n at the end names the n-th of several volumes")
    c.add_argument("--point", action="append", default=[], metavar="i,j,k", help="voxel inside (repeatable)")
    c.add_argument("--negative", action="append", default=[], metavar="i,j,k", help="voxel outside (repeatable)")
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
    c.add_argument("--channel", type=int, help="of a 4D image, from 0")
    c.add_argument("--spacing", metavar="i,j,k", help="voxel size in mm, for DICOM files that do not state it")

    from lib.evaluation import command_line as evaluation
    from lib.training import command_line as training

    c = add("evaluate", _evaluate, "measure methods on labelled volumes by the papers' and other protocols", evaluation.EVALUATE_EXAMPLES)
    evaluation.add_evaluate_arguments(c)
    c = add("batch", _batch, "segment all images of a folder from prompts in files", evaluation.BATCH_EXAMPLES)
    evaluation.add_batch_arguments(c)
    help_text = "pack volumes into a small folder for train, but for patients who are held back for validation"
    training.add_pack_arguments(add("pack", _pack, help_text, training.PACK_EXAMPLES))
    help_text = "go on training a checkpoint for a given time on generated clips and on packed volumes"
    training.add_train_arguments(add("train", _train, help_text, training.TRAIN_EXAMPLES))
    help_text = "train the small network that corrects masks by clicks and boxes beside SAM 2 networks for small images"
    training.add_session_arguments(add("train-corrections", _train_corrections, help_text, training.CORRECTION_EXAMPLES))
    help_text = "train the small network that tracks beside SAM 2 networks for small images"
    training.add_session_arguments(add("train-tracking", _train_tracking, help_text, training.TRACKING_EXAMPLES))
    help_text = "train the small network that adapts the mask of a volume to all of its prompts"
    training.add_session_arguments(add("train-volume", _train_volume, help_text, training.VOLUME_EXAMPLES))
    c = add("finetune", _finetune, "fine-tune a checkpoint on labelled volumes", training.FINETUNE_EXAMPLES)
    training.add_finetune_arguments(c, VERSIONS)
    help_text = "fit the estimate of slice quality, which chooses the next slice, and where tracking stops to a checkpoint"
    training.add_calibrate_arguments(add("calibrate", _calibrate, help_text, training.CALIBRATE_EXAMPLES))

    c = add("labels", _labels, "list the labels of a folder or a DICOM store and their history, or bring one back", [
        "python main.py labels --studies DIR", "python main.py labels --studies DIR --image ID --restore NAME",
    ])  # fmt: skip
    c.add_argument("--studies", required=True, metavar="DIR", help="the studies folder, or the DICOMweb address")
    c.add_argument("--image", metavar="ID", help="list this image only")
    c.add_argument("--restore", metavar="NAME", help="label of the history that becomes the present one of --image")

    c = add("versions", _versions, "list fine-tuned versions, or choose the one to serve", [
        "python main.py versions", "python main.py versions --serve v0002", "python main.py versions --serve base",
    ])  # fmt: skip
    c.add_argument("--checkpoint", default="embedded", help="the checkpoint they come from")
    c.add_argument("--versions", type=Path, default=VERSIONS)
    c.add_argument("--serve", metavar="NAME", help="version to serve from now on; base: none of them")
    return parser


def _serve(options) -> int:
    from lib.serving.launch import serve

    return serve(options.studies, options.host, options.port, options.conf, options.root_path)


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
    from lib.imaging.geometry import has_shear
    from lib.imaging.readers import read_volume
    from lib.imaging.writers import write_mask

    volume = read_volume(options.image, channel=options.channel, spacing_mm=_parse_spacing(options.spacing))
    for warning in volume.warnings:
        logging.warning(warning)
    names = ("checkpoint", "device", "window", "axis", "direction", "z_range", "components")
    engine_options = parse_options({name: getattr(options, name) for name in names})
    boxes = [_parse_numbers(b, 6) for b in options.box]
    region = _parse_numbers(options.roi, 6) if options.roi else []
    request = {
        "foreground": [_parse_numbers(p, 3) for p in options.point],
        "background": [_parse_numbers(p, 3) for p in options.negative],
        "boxes": [[b[:3], b[3:]] for b in boxes],
        "roi": [region[n] for n in (0, 3, 1, 4, 2, 5)] if region else [],
        "absent": options.absent,
    }
    prompts = parse_prompts(request, volume, engine_options, painted=options.mask)
    result = Segmenter().segment(volume, prompts, engine_options, partial(tqdm, leave=False))
    path = write_mask(result.mask, volume, options.out)
    if has_shear(volume.affine) and str(path).lower().endswith((".nii", ".nii.gz")):
        logging.warning("The axes of %s are not perpendicular: 3D Slicer reads such masks as .nrrd, but not as NIfTI.", volume.name)
    logging.info("%d voxels on %s; seconds: %s", result.mask.sum(), path, {k: round(v, 2) for k, v in result.seconds.items()})
    if options.preview:
        from lib.engine.preview import contact_sheet
        from lib.imaging.frames import Frames

        frames = Frames.of(volume, window=engine_options.window, axis=engine_options.axis)
        logging.info("Preview: %s", contact_sheet(frames, result.mask, prompts, options.preview))


def _evaluate(options) -> int:
    from importlib import import_module

    from lib.evaluation.command_line import run_evaluate

    classes = {"app": ("lib.evaluation.methods.app", "AppMethod"), "official": ("benchmarks.peers", "OfficialMethod"),
               "builtin": ("benchmarks.peers", "BuiltinMethod"),
               "classical": ("lib.evaluation.methods.classical", "ClassicalMethod"),
               "fill": ("lib.evaluation.methods.fill", "FillMethod")}  # fmt: skip
    return run_evaluate(options, {k: lambda m=m, n=n: getattr(import_module(m), n) for k, (m, n) in classes.items()})


def _batch(options) -> int:
    from lib.evaluation.command_line import run_batch

    return run_batch(options)


def _pack(options) -> None:
    from lib.training.command_line import run_pack

    run_pack(options)


def _train(options) -> None:
    from lib.training.command_line import run_train

    run_train(options)


def _train_corrections(options) -> None:
    from lib.training.command_line import run_train_corrections

    run_train_corrections(options)


def _train_tracking(options) -> None:
    from lib.training.command_line import run_train_tracking

    run_train_tracking(options)


def _train_volume(options) -> None:
    from lib.training.command_line import run_train_volume

    run_train_volume(options)


def _finetune(options) -> None:
    from lib.model.device import resolve_device
    from lib.model.versions import Versions
    from lib.training.fine_tuning import FineTuning, fine_tune

    settings = FineTuning(
        parts=options.parts, epochs=options.epochs, steps=options.steps, rate=options.rate, minutes=options.minutes,
        val_share=options.val_share, seed=options.seed, device=str(resolve_device(options.device)), window=options.window,
    )  # fmt: skip
    versions = Versions(options.versions, options.checkpoint)
    fine_tune(_find_cases(options.data), versions, versions.folder / "runs", settings)


def _calibrate(options) -> None:
    from lib.training.command_line import run_calibrate

    run_calibrate(options)


def _versions(options) -> None:
    from lib.model.versions import Versions

    versions = Versions(options.versions, options.checkpoint)
    if options.serve:
        versions.serve(None if options.serve == "base" else options.serve)
    served = versions.served()
    for name in ["base", *versions.names()]:
        sys.stdout.write(f"{name}{'  served' if name == (served.stem if served else 'base') else ''}\n")


def _labels(options) -> None:
    from lib.serving.datastore.label_list import list_labels, restore_label

    if options.restore:
        logging.info("%s", restore_label(options.studies, options.image, options.restore))
        return
    sys.stdout.writelines(f"{line}\n" for line in list_labels(options.studies, options.image))


def _find_cases(folder: str) -> list:
    """Return the labelled volumes of a folder."""
    from lib.imaging.datasets import find_cases

    return find_cases(folder)


def _parse_spacing(text: str | None) -> tuple[float, ...] | None:
    """Return three voxel sizes in mm, or None without a text; PromptError unless all are above 0."""
    from lib.common.errors import PromptError

    sizes = tuple(_parse_numbers(text, 3)) if text else None
    if sizes and not all(0 < s < float("inf") for s in sizes):
        raise PromptError(f"The spacing {text!r} must be three numbers above 0.")
    return sizes


def _parse_numbers(text: str, count: int) -> list[float]:
    """Return the numbers of a comma-separated text.

    Raises:
        PromptError: it does not hold so many numbers.
    """
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
