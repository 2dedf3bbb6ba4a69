"""Measure what the server does when things fail: run the tests of faults and print what clients were answered and what was lost.

examples:
  python benchmarks/faults.py
  python benchmarks/faults.py --tries 20
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT / "build" / "faults.jsonl"  # The tests write one row for each fault.
TESTS = (ROOT / "tests/serving/datastore/test_storage_faults.py", ROOT / "tests/serving/test_faults.py")


def main() -> int:
    """Run the tests and print the table; return the exit status of pytest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=10, help="how often a server is killed while it works (default: %(default)s)")
    options = parser.parse_args()
    ROWS.unlink(missing_ok=True)
    environment = {**os.environ, "SAM2_FAULT_TRIES": str(options.tries)}
    command = [sys.executable, "-m", "pytest", "-q", "-rs", *map(str, TESTS)]
    status = subprocess.run(command, cwd=ROOT, env=environment, stdout=sys.stderr).returncode
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.is_file() else []
    print("| fault | tries | what the client got | data lost |\n| --- | --- | --- | --- |")
    for r in rows:
        print(f"| {r['fault']} | {r['tries']} | {r['client_got']} | {r['lost'] or 'none'} |")
    return status


if __name__ == "__main__":
    sys.exit(main())
