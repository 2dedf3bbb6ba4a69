"""Bring files as real people have them to the product in each way, and print where the masks lie.

Each file holds a bright ball whose place in mm is known. The ball is clicked and its mask compared with it, as 3D Slicer's client, SimpleITK
and highdicom see both. A table of case x way says: right (mm off), refused (the sentence), wrong, or crash. The exit status is 1 if anything
is wrong or crashed, or is not what `cases.py` wants.
"""

import argparse
import json
import socket
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1])]
from tests.real_files.cases import Case, Verdict, complaint, generate, read_cases  # noqa: E402
from tests.real_files.ways import TIMEOUT_S, WAYS  # noqa: E402

EXAMPLES = """examples:
  python tests/real_files/run.py --cases cases
  python tests/real_files/run.py --cases cases --ways folder,orthanc dcm_tilt dcm_missing
  python tests/real_files/run.py --generators ../shared/cases --json verdicts.json
"""


def main(arguments: list[str] | None = None) -> int:
    """Read the options, ask for all cases in all ways, print the table and return the exit status."""
    p = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = p.add_mutually_exclusive_group(required=True)
    source.add_argument("--cases", type=Path, help="folder with truth.json and the files that it lists")
    source.add_argument("--generators", type=Path, help="folder with make_*.py, which are copied and run in a temporary folder")
    p.add_argument("--ways", default=",".join(WAYS), help="some of %(default)s")
    p.add_argument("--json", type=Path, help="write the verdicts to this file")
    p.add_argument("case", nargs="*", help="names of cases (default: all)")
    options = p.parse_args(arguments)
    ways = options.ways.split(",")
    if unknown := set(ways) - set(WAYS):
        p.error(f"there is no way {', '.join(sorted(unknown))}; choose some of {', '.join(WAYS)}")
    socket.setdefaulttimeout(TIMEOUT_S)  # The client of 3D Slicer's plugin waits forever otherwise.
    with tempfile.TemporaryDirectory(prefix="real_files_") as temporary:
        folder = options.cases
        if options.generators:
            folder = Path(temporary, "cases")
            folder.mkdir()
            generate(options.generators, folder)
        cases = read_cases(folder.resolve(), options.case)
        verdicts = {way: ask_all(way, cases, Path(temporary, way)) for way in ways}
    complaints = print_table(cases, verdicts)
    if options.json:
        rows = {c.name: {w: {"kind": v[c.name].kind, "text": v[c.name].text} for w, v in verdicts.items()} for c in cases}
        options.json.write_text(json.dumps(rows, indent=1))
    return 1 if complaints else 0


def ask_all(way: str, cases: list[Case], folder: Path) -> dict[str, Verdict]:
    """Return the verdict of each case in one way, and print each as it comes."""
    folder.mkdir()
    verdicts = {}
    user = WAYS[way](folder, cases)
    try:
        for case in cases:
            start = time.monotonic()
            try:
                verdicts[case.name] = user.ask(case)
            except Exception as e:
                verdicts[case.name] = Verdict("crash", f"{type(e).__name__}: {e}")
            print(f"{way:8} {case.name:26} {time.monotonic() - start:6.1f} s  {verdicts[case.name]}", flush=True)
    finally:
        user.close()
    return verdicts


def print_table(cases: list[Case], verdicts: dict[str, dict[str, Verdict]]) -> list[str]:
    """Print the verdicts, their numbers and what is not as wanted; return the latter."""
    rows = [("case", *verdicts)]
    rows += [(c.name, *(str(v[c.name]) if v[c.name].kind == "right" else v[c.name].kind for v in verdicts.values())) for c in cases]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print()
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    print()
    for way, of_way in verdicts.items():
        counts = Counter(v.kind for v in of_way.values())
        print(f"{way}: " + ", ".join(f"{counts[kind]} {kind}" for kind in ("right", "refused", "wrong", "crash", "not asked")))
    complaints = [f"{way}: {c.name}: {text}" for way, v in verdicts.items() for c in cases if (text := complaint(c, v[c.name]))]
    print("\n".join(["", f"{len(complaints)} not as wanted:", *complaints]))
    return complaints


if __name__ == "__main__":
    sys.exit(main())
