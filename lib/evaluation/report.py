"""The readable files of a run: results.csv, summary.md, and plots and pictures of slices as PNG."""

import subprocess
from pathlib import Path

from lib.common.atomic_files import write_text
from lib.evaluation import figures, overlays
from lib.evaluation.case_evaluation import INTERACTIVE_PROTOCOLS, EvaluationSettings
from lib.evaluation.interactive_tables import format_challenge_tables, format_edits_tables
from lib.evaluation.metrics import TOLERANCE_VOXELS
from lib.evaluation.protocols import cvpr25
from lib.evaluation.tables import METHOD_NAMES, PROTOCOL_TABLES, format_csv, format_methods_table, format_structures_table

ROOT = Path(__file__).resolve().parents[2]
TITLES = {
    "he": "He et al. 2024", "shen": "Shen et al. 2024", "dong": "Dong et al. 2024", "rounds": "rounds of corrections",
    "cvpr25": "interactive 3D segmentation challenge of CVPR 2025", "isvalidate": "random clicks (IS_Validate)",
}  # fmt: skip
NOTES = {
    "he": "Dice of the best of up to 8 rounds, mean over cases.",
    "shen": "Dice / NSD in percent after the last click, mean over cases.",
    "dong": "IoU of the slices with foreground, pooled over all slices of a class, mean over classes.",
    "rounds": "Dice of the volume after so many annotated slices; a structure that stopped early keeps its last Dice.",
    "cvpr25": f"DSC and NSD: means over the classes of a volume; NSD is 0 where DSC is not above 0.2. AUC: area over the five click "
              f"steps, at most 4. Time limit: {cvpr25.SECONDS_PER_CLASS:.0f} s for each class of a volume, all steps together.",
    "isvalidate": "nAUC: area under the curve from the first click to the n-th edit, divided by n. NoI: edits until the Dice is above the "
                  "threshold, n + 1 where it never is (failed). A perfect mask keeps its scores.",
}


def write_report(folder: Path, settings: EvaluationSettings, dataset_name: str, reports: list[dict]) -> Path:
    """Write all files into the folder of a run, and return the path of summary.md. `reports` are those of all cases."""
    write_text(folder / "results.csv", format_csv(reports))
    rows = [r for report in reports for r in report["rows"]]
    if rows:
        if settings.protocol in ("he", "rounds"):
            figures.draw_rounds(rows, folder / "curves.png")
        if settings.protocol == "shen":
            figures.draw_clicks([r for r in rows if r["method"] == settings.methods[0]], folder / "curves.png")
        if settings.protocol in INTERACTIVE_PROTOCOLS:
            figures.draw_interactions(rows, _count_rounds(settings), folder / "curves.png")
        if all_overlays := [o for report in reports for o in report.get("overlays", [])]:
            overlays.draw_overlays(all_overlays, folder / "slices.png")
    path = folder / "summary.md"
    write_text(path, "\n".join(format_summary(settings, dataset_name, reports)) + "\n")
    return path


def format_summary(settings: EvaluationSettings, dataset_name: str, reports: list[dict]) -> list[str]:
    """Return the lines of summary.md."""
    rows = [r for report in reports for r in report["rows"]]
    failed, seconds = [r for r in reports if "error" in r], sum(r["seconds"] for r in reports)
    is_interactive = settings.protocol in INTERACTIVE_PROTOCOLS
    mode = "" if is_interactive else f", as {settings.mode}"
    clicks = "each is clicked by its own errors" if is_interactive else "clicks are made for the first of them"
    in_voxels = settings.protocol == "shen" and settings.mode == "published"
    tolerance = f"{TOLERANCE_VOXELS:g} voxel" if in_voxels else f"{settings.tolerance_mm:g} mm"
    lines = [
        f"# {TITLES[settings.protocol]}{mode}, on {dataset_name}", "",
        f"* checkpoint: {settings.checkpoint} (SHA-256 {settings.weights[:12] or 'unknown'}); git revision: {git_revision()}",
        f"* cases: {len(reports) - len(failed)} finished, {len(failed)} failed; {len(rows)} rows; {seconds:.0f} seconds of work",
        f"* methods: {', '.join(METHOD_NAMES.get(m, m) for m in settings.methods)}; {clicks}",
        f"* window: {settings.window}; seed: {settings.seed}; strategy: {settings.strategy}",
        f"* NSD: surface Dice at a tolerance of {tolerance}",
        "* in brackets: 95 % bootstrap intervals over volumes",
        f"* {NOTES[settings.protocol]}",
        "* empty masks: both empty = 1 (HD95 0), one empty = 0 (HD95 without a value, left out of means)", "",
    ]  # fmt: skip
    if failed:
        lines += ["## Failed cases", "", *(f"* {r['case']}: {r['error']}" for r in failed), ""]
    if not rows:
        why = "no case holds a structure that was asked for, or no method takes the prompts of this protocol"
        return [*lines, f"Nothing was measured: {why}."]
    left_out = [METHOD_NAMES.get(m, m) for m in settings.methods if all(r["method"] != m for r in rows)]
    if left_out:
        lines += [f"Left out, because it cannot take the prompts of this protocol: {', '.join(left_out)}.", ""]
    if settings.protocol == "cvpr25":
        return [*lines, *format_challenge_tables(rows, dataset_name)]
    if settings.protocol == "isvalidate":
        return [*lines, *format_edits_tables(rows, dataset_name, settings.edits)]
    for method in settings.methods:
        if method_rows := [r for r in rows if r["method"] == method]:
            lines += [f"## {METHOD_NAMES.get(method, method)}", "", *PROTOCOL_TABLES[settings.protocol](method_rows, dataset_name), ""]
            if settings.protocol != "dong":  # Its many settings would make the table too long.
                lines += [*format_structures_table(method_rows), ""]
    if len(settings.methods) > 1:
        lines += ["## Methods on the same clicks", "", *format_methods_table(rows)]
    return lines


def _count_rounds(settings: EvaluationSettings) -> int:
    """Return the number of interactions after the first one in one of the INTERACTIVE_PROTOCOLS."""
    return cvpr25.CLICK_STEPS if settings.protocol == "cvpr25" else settings.edits


def git_revision() -> str:
    """Return the git revision of the code, with "+" if files differ from it, or "unknown"."""
    git = ["git", "-C", str(ROOT)]
    try:
        revision = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return revision.stdout.strip() + ("+" if changes.stdout.strip() else "")
