"""What a run leaves to read: results.csv, summary.md, curves and slices as PNG."""

import subprocess
from pathlib import Path

from lib.common.atomic_files import write_text
from lib.evaluation import figures, overlays
from lib.evaluation.case_evaluation import Settings
from lib.evaluation.tables import METHOD_NAMES, TABLES, compare_table, structures_table, to_csv

ROOT = Path(__file__).resolve().parents[2]
TITLES = {
    "he": "He et al. 2024", "shen": "Shen et al. 2024", "dong": "Dong et al. 2024", "rounds": "rounds of corrections",
}  # fmt: skip
NOTES = {
    "he": "Dice of the best of up to 8 rounds, mean over cases.",
    "shen": "Dice / NSD in percent after the last click, mean over cases.",
    "dong": "IoU of the slices with foreground, pooled over all slices of a class, mean over classes.",
    "rounds": "Dice of the volume after so many annotated slices; a structure that stopped early keeps its last.",
}


def write_report(folder: Path, settings: Settings, data: str, reports: list[dict]) -> Path:
    """Writes all files into `folder`; the path of summary.md."""
    write_text(folder / "results.csv", to_csv(reports))
    rows = [r for report in reports for r in report["rows"]]
    if rows:
        if settings.protocol in ("he", "rounds"):
            figures.rounds_figure(rows, folder / "curves.png")
        if settings.protocol == "shen":
            figures.clicks_figure([r for r in rows if r["method"] == settings.methods[0]], folder / "curves.png")
        shown = [s for report in reports for s in report.get("overlays", [])]
        if shown:
            overlays.sheet(shown, folder / "slices.png")
    path = folder / "summary.md"
    write_text(path, "\n".join(summary(settings, data, reports)) + "\n")
    return path


def summary(settings: Settings, data: str, reports: list[dict]) -> list[str]:
    """Lines of summary.md."""
    rows = [r for report in reports for r in report["rows"]]
    failed = [r for r in reports if "error" in r]
    seconds = sum(r["seconds"] for r in reports)
    lines = [
        f"# {TITLES[settings.protocol]}, as {settings.mode}, on {data}", "",
        f"* checkpoint: {settings.checkpoint} (SHA-256 {settings.weights[:12] or 'unknown'}); git revision: {revision()}",
        f"* cases: {len(reports) - len(failed)} finished, {len(failed)} failed; {len(rows)} rows; {seconds:.0f} seconds of work",
        f"* methods: {', '.join(METHOD_NAMES.get(m, m) for m in settings.methods)}; clicks are made for the first of them",
        f"* window: {settings.window}; seed: {settings.seed}; strategy: {settings.strategy}",
        f"* {NOTES[settings.protocol]}",
        "* empty masks: both empty = 1 (HD95 0), one empty = 0 (HD95 without a value, left out of means)", "",
    ]  # fmt: skip
    if failed:
        lines += ["## Failed cases", "", *(f"* {r['case']}: {r['error']}" for r in failed), ""]
    if not rows:
        return [*lines, "Nothing was measured: no case holds a structure that was asked for."]
    for method in settings.methods:
        chosen = [r for r in rows if r["method"] == method]
        if chosen:
            lines += [f"## {METHOD_NAMES.get(method, method)}", "", *TABLES[settings.protocol](chosen, data), ""]
            if settings.protocol != "dong":  # it has too many settings
                lines += [*structures_table(chosen), ""]
    if len(settings.methods) > 1:
        lines += ["## Methods on the same clicks", "", *compare_table(rows)]
    return lines


def revision() -> str:
    """Git revision of the code, with "+" if files differ from it."""
    try:
        short = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
        name = subprocess.run(short, capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(["git", "-C", str(ROOT), "status", "--porcelain"], capture_output=True, text=True, check=True)
        return name + ("+" if changed.stdout.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
