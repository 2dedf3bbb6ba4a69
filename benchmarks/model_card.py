"""Write the model card of the embedded checkpoint from its training record and the results of other benchmarks.

examples:
  python benchmarks/accuracy.py --data DIR --json rows.json
  python benchmarks/calibration.py --data DIR --json calibration.json --png apps/sam2/model/reliability.png
  python benchmarks/model_card.py --training runs/first/training.json --rows rows.json --first first.json \\
      --calibration calibration.json --presence runs/first/presence.json --recipe recipe.md --data-name "..."
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from accuracy import format_table  # noqa: E402

from lib.model import checkpoints  # noqa: E402
from lib.training.packed_volumes import INDEX  # noqa: E402

TEXT = """# Embedded checkpoint `{name}`

Written by `benchmarks/model_card.py`.

A SAM 2 network ({config}) of {parameters:.1f} million parameters for {size} x {size} pixels, half-precision safetensors,
{megabytes:.1f} MB, SHA-256 `{digest}`. Apache 2.0.

## What it is for

With this checkpoint the app, its tests and its benchmarks run without network access and without a GPU. It segments structures in CT
and MR volumes from clicks, boxes and painted slices. Structures of low contrast and long, thin structures need several annotated
slices. For real work, compare it with an official checkpoint (`python main.py download tiny`) or fine-tune it on your labels. It is
not a medical device, and no mask may be used without review.

## Training

* Data: {data}
* Command: `{command}`, seed {seed}, {seconds} s in all on {machine}, PyTorch {torch}, bfloat16.
* Steps:

| phase | steps | pixels | clips a step | slices a clip | targets a clip | learning rate |
| --- | --- | --- | --- | --- | --- | --- |
{phases}

{notes}

{sources}### What each change gave

{recipe}

## Measured

On {data_name} by `benchmarks/accuracy.py` (embedded checkpoint, CPU). `builtin` is MONAI Label's own SAM 2 task with the same
weights and the same clicks, `classical` is a random walker with the same clicks. None of these volumes was used in training. Constants
such as the score drop and the margins were fitted on generated volumes; only the effect in the row "the single mask also where it is
unstable" was observed on these volumes alone.

```
{table}
```

The first version of this checkpoint, with the engine of that time, on the same volumes:

```
{first}
```

## Calibration

Measured by `benchmarks/calibration.py` on the same volumes, with the same three kinds of prompts, over all slices that were not
annotated: {calibration}

![reliability](reliability.png)

The object score of such a small network depends more on the size of the object than on its presence. Therefore the engine looks at the
*drop* of the score and at the image. An object counts as lost where its score is more than a limit below the score of the slices beside
the annotation. The limit is {score_drop}, plus {appearance_gain} times the contrast (-1 to 1) that says how much the mask still looks
like the object on the annotated slice (`lib/propagation/object_end.py`). Both numbers were fitted on generated volumes
(`lib/training/object_end_calibration.py`):

| drop, gain | volume Dice | empty slices with a mask |
| --- | --- | --- |
{presence_rows}

## Known limits

* Long, thin structures that move across the slices (vessels, pancreas, sacrum) get lost after a few slices: annotate more slices.
* Tracking may stop before the end of a structure that shrinks or changes abruptly: click on the first slice without a mask. There
  `expected_iou` is too high, because tracking stops too early less often on the generated volumes on which it was fitted.
* The image is reduced to 256 pixels: structures less than about 5 of these pixels wide are lost on slices that are only tracked.
"""


def phase_rows(training: dict) -> list[str]:
    """Return the rows of the table of training phases; those of the `earlier` runs, whose weights this run started from, come first."""
    rows = [row for earlier in training.get("earlier", []) for row in phase_rows(earlier)]
    for phase in training.get("phases", []):
        rate = f"{phase['rate']:g} to {phase['final_rate']:g}"
        rows.append(
            f"| {phase['kind']} | {phase['steps']} | {phase['size']} | {phase['batch']} | {phase['slices']} "
            f"| {phase.get('objects', 1)} | {rate} |"
        )
    if "phases" not in training:  # A run of today's loop, which has one phase.
        batch, settings = training.get("batch", {}), training["settings"]
        clips = sum(batch.get(k, 0) for k in ("generated", "labelled", "regions")) or ""
        rate = f"{settings['rate']:g} to {settings.get('final_rate', 0):g}"
        rows.append(f"| tracking | {training['steps']} | 256 | {clips} | {settings['slices']} | {batch.get('objects', '')} | {rate} |")
    return rows


def format_sources(packed: Path) -> str:
    """Return a table of the licences of the volumes in a folder of the command pack, with the sources that the licences name."""
    counts = Counter((row["licence"] or "not stated", row["modality"] or "-") for row in json.loads((packed / INDEX).read_text()))
    rows = [f"| {licence} | {modality} | {count} |" for (licence, modality), count in sorted(counts.items())]
    return "\n".join(["Real volumes, by licence and source:", "", "| licence (source) | modality | volumes |", "| --- | --- | --- |", *rows])


def main() -> None:
    """Read the options and write the model card."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--training", type=Path, required=True, help="training.json of the run; may hold `earlier` runs and a command")
    p.add_argument("--rows", type=Path, required=True, help="rows that accuracy.py has written")
    p.add_argument("--first", type=Path, required=True, help="rows of the first version of the checkpoint")
    p.add_argument("--calibration", type=Path, required=True, help="file that calibration.py has written")
    p.add_argument("--presence", type=Path, required=True, help="presence.json of the run")
    p.add_argument("--recipe", type=Path, required=True, help="Markdown table of what each change of the recipe gave")
    p.add_argument("--data-name", default="the volumes given", help="what the rows were measured on (default: %(default)s)")
    data_help = "what the network was trained on (default: %(default)s)"
    p.add_argument("--data", default="clips that `lib/training/clip_source.py` generates.", help=data_help)
    p.add_argument("--packed", type=Path, help="folder of the command pack with the real volumes that it was trained on")
    p.add_argument("--notes", default="", help="text below the table of training phases")
    default_out, out_help = checkpoints.EMBEDDED.with_name("README.md"), "the model card (default: that of the embedded checkpoint)"
    p.add_argument("--out", type=Path, default=default_out, help=out_help)
    a = p.parse_args()
    training, rows, first_rows, calibration, presence = (
        json.loads(f.read_text()) for f in (a.training, a.rows, a.first, a.calibration, a.presence)
    )
    embedded = checkpoints.find("embedded")
    weights = checkpoints.read_weights(embedded.path)
    metadata = checkpoints.metadata(embedded)
    summary = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in calibration["summary"].items())
    a.out.write_text(TEXT.format(
        name=embedded.path.name, config=embedded.config, parameters=sum(w.numel() for w in weights.values()) / 1e6,
        size=embedded.image_size, megabytes=embedded.path.stat().st_size / 1e6, digest=checkpoints.sha256(embedded.path),
        seed=training["settings"]["seed"], seconds=training["seconds"] + sum(x["seconds"] for x in training.get("earlier", [])),
        machine=training["machine"], torch=training["torch"], command=training.get("command", "python main.py train"),
        data=a.data, sources=f"{format_sources(a.packed)}\n\n" if a.packed else "", phases="\n".join(phase_rows(training)), notes=a.notes, recipe=a.recipe.read_text().strip(),
        data_name=a.data_name, table=format_table(rows).strip(), first=format_table(first_rows).strip(), calibration=summary + ".",
        score_drop=metadata["presence_drop"], appearance_gain=metadata["presence_gain"],
        presence_rows="\n".join(f"| {limits} | {figures[0]:.3f} | {figures[1]:.2f} |" for limits, figures in presence.items()),
    ))  # fmt: skip


if __name__ == "__main__":
    main()
