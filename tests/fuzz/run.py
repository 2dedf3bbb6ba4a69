"""Send random requests that follow the server's own OpenAPI description; no answer may be a server error or take long.

Run this script with the Python of the server's environment (`.venv/bin/python tests/fuzz/run.py`). Schemathesis needs a newer jsonschema
than the packages of that environment, so it gets an environment of its own, build/fuzz-venv. The report and the server's log are left
in build/fuzz. The exit status is not zero when a request failed, when the server ended, or when the run took too long.

The routes /proxy and /ohif are left out because MONAI Label does not describe them; tests/serving/test_fuzz.py sends requests to them.
"""

import argparse
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT)]
from tests.serving.processes import free_port  # noqa: E402

VENV, OUT = ROOT / "build" / "fuzz-venv", ROOT / "build" / "fuzz"
SEED = 1


def install_schemathesis() -> Path:
    """Return the folder of programs of the environment of Schemathesis, after making the environment if needed."""
    requirements, installed = (HERE / "requirements.txt").read_text(), VENV / "made-from.txt"
    if not installed.exists() or installed.read_text() != requirements:
        subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=True)
        subprocess.run([VENV / "bin" / "python", "-m", "pip", "install", "--quiet", "-r", HERE / "requirements.txt"], check=True)
        installed.write_text(requirements)
    return VENV / "bin"


def write_volume(path: Path) -> None:
    """Write a NIfTI file of 24 x 24 x 6 voxels (2 x 2 x 5 mm) with a bright cylinder."""
    size, spacing_mm = (24, 24, 6), (2.0, 2.0, 5.0)
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *size, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 4, 16)  # int16
    struct.pack_into("<4f", header, 76, 1, *spacing_mm)
    struct.pack_into("<2f", header, 108, 352, 1)
    struct.pack_into("<h", header, 254, 1)
    for row in range(3):
        struct.pack_into("<f", header, 280 + 20 * row, spacing_mm[row])
    header[344:348] = b"n+1\0"
    voxels = [170 if (i - 10) ** 2 + (j - 12) ** 2 < 25 else 80 + (i * j) % 7 for _ in range(6) for j in range(24) for i in range(24)]
    path.write_bytes(header + struct.pack(f"<{len(voxels)}h", *voxels))


def start_server(folder: Path, port: int, log) -> subprocess.Popen:
    """Start a server that writes only below the folder and has two small volumes; its output goes to the open file `log`."""
    for name in ("studies", "temporary", "sessions", "versions"):
        (folder / name).mkdir()
    for name in ("small", "other"):
        write_volume(folder / "studies" / f"{name}.nii")
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", ROOT / "apps" / "sam2", "--studies", folder / "studies"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--conf", "versions", folder / "versions"]
    environment = {**os.environ, "TMPDIR": str(folder / "temporary"), "MONAI_LABEL_SESSION_PATH": str(folder / "sessions")}
    return subprocess.Popen([str(c) for c in command], cwd=folder, stdout=log, stderr=subprocess.STDOUT, env=environment)


def answers_within(address: str, process: subprocess.Popen, timeout_s: float) -> bool:
    """Return whether the server answers within that time; it does not when its process ends."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/info/", timeout=30) as answer:
                return answer.status == 200
        except OSError:
            time.sleep(0.3)
    return False


def main() -> int:
    """Read the options, start a server, run Schemathesis against it and return the exit status."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--examples", type=int, default=100, help="random requests of each route (default: %(default)s)")
    p.add_argument("--minutes", type=float, default=20, help="time limit of the run (default: %(default)s)")
    a = p.parse_args()
    programs = install_schemathesis()
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [programs / "schemathesis", "run", f"{address}/openapi.json", "--checks", "not_a_server_error", "--max-response-time", "30"]
    command += ["--request-timeout", "60", "--max-examples", str(a.examples), "--workers", "1", "--seed", str(SEED), "--no-color"]
    command += ["--generation-database", "none", "--report", "junit,har", "--report-dir", OUT, "--continue-on-failure", "--warnings", "off"]
    with tempfile.TemporaryDirectory(prefix="fuzz_") as folder, open(OUT / "server.log", "w") as log:
        server = start_server(Path(folder), port, log)
        try:
            if not answers_within(address, server, 180):
                sys.stdout.write(f"The server did not start; see {OUT / 'server.log'}.\n")
                return 1
            sys.stdout.flush()
            try:
                status = subprocess.run([str(c) for c in command], cwd=OUT, timeout=60 * a.minutes).returncode
            except subprocess.TimeoutExpired:
                sys.stdout.write(f"Not done after {a.minutes:g} minutes.\n")
                status = 1
            if not answers_within(address, server, 60):
                sys.stdout.write(f"The server does not answer any more; see {OUT / 'server.log'}.\n")
                status = 1
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
    sys.stdout.write(f"Report: {OUT}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
