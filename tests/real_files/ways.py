"""The ways in which users bring an image to the product: the command line, a studies folder, and a DICOM store."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import requests

from lib.serving.launch import start_monailabel, stop, wait_for
from tests.imaging.real_cases import frame_points
from tests.real_files.cases import BALL, Case, Grid, Verdict, holds_ball, judge, judge_mask, read_as_client, refusal, worst
from tests.serving import orthanc
from tests.serving.processes import free_port
from tests.serving.test_server import slicer_client

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 300
SHEARED_ENDINGS = (".nii.gz", ".nrrd", ".mha", ".seg.nrrd")
SUBMIT, AGAIN = "submitting the mask", "downloading the label"
ON_SLICE_MM = 0.01  # How far a frame of a DICOM SEG may lie from a source slice.


class CommandLine:
    """`main.py segment` with a click on a voxel, or with a label map."""

    def __init__(self, folder: Path, cases: list[Case]):
        self._folder = folder

    def close(self) -> None:
        pass

    def ask(self, case: Case) -> Verdict:
        """Segment the ball and judge the mask, in each format if the voxels are sheared."""
        return worst([self._segment(case, ending) for ending in (SHEARED_ENDINGS if case.is_sheared else SHEARED_ENDINGS[:1])])

    def _segment(self, case: Case, ending: str) -> Verdict:
        out = self._folder / f"{case.name}{ending}"
        prompt = ["--mask", str(case.mask)] if case.mask else ["--point", ",".join(map(str, case.click_ijk))]
        command = [sys.executable, str(ROOT / "main.py"), "segment", str(case.image), *prompt, "-o", str(out), *case.arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return Verdict("crash", f"no answer within {TIMEOUT_S} s")
        lines = done.stderr.strip().splitlines() or [""]
        if "Traceback" in done.stderr or done.returncode not in (0, 2):
            return Verdict("crash", f"status {done.returncode}, {lines[-1]}")
        if done.returncode == 2:
            return refusal(lines[-1].removeprefix("error: "))
        return judge_mask(case, out)


class _Server:
    """A MONAI Label server with the client of 3D Slicer's plugin. Its caches and files lie in a folder."""

    def __init__(self, folder: Path, studies: str, processes: list):
        self.folder, self._processes = folder, processes
        for name in ("DICOMWEB_CACHE_PATH", "DATASTORE_CACHE_PATH", "SESSION_PATH"):
            os.environ[f"MONAI_LABEL_{name}"] = str(folder / name.lower())
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        port = free_port()
        conf = [(name, str(folder / name)) for name in ("rounds", "versions")] + [("labels", BALL)]
        self._log = folder / "server.log"
        processes.append(start_monailabel(studies, "127.0.0.1", port, conf, self._log))
        self.address = f"http://127.0.0.1:{port}"
        wait_for(f"{self.address}/info/", processes[-1], log=self._log)
        (folder / "downloads").mkdir()
        self.client = slicer_client()(self.address, tmpdir=str(folder / "downloads"), client_id="real files")

    def close(self) -> None:
        stop(self._processes)

    def infos(self) -> dict[str, dict]:
        """Return the info of each image that the server lists."""
        return {image: entry["image"].get("info", {}) for image, entry in self.client.datastore()["objects"].items()}

    def download(self, image: str, name: str | None) -> Path:
        """Download an image as 3D Slicer's plugin does, under the name that *Next Sample* gives it."""
        answer = requests.get(f"{self.address}/datastore/image", params={"image": image}, timeout=TIMEOUT_S)
        if not answer.ok:
            raise RuntimeError(f"Status: {answer.status_code}; Response: {answer.text}")
        name = name or re.findall('filename="?([^";]+)', answer.headers.get("content-disposition", ""))[0]
        path = Path(tempfile.mkdtemp(dir=self.folder / "downloads")) / Path(name).name
        path.write_bytes(answer.content)
        return path

    def ask(self, case: Case, image: str, info: dict, stored=None) -> Verdict | None:
        """Segment the ball of an image, submit the mask as final label, and judge the mask and the label that is downloaded again.

        Args:
            stored: Function of the case that judges what a DICOM store got.

        Returns:
            None if this is one of several volumes of a case and does not hold the whole ball.
        """
        self._step = "image"
        try:
            return self._ask(case, image, info, stored)
        except Exception as e:
            verdict = verdict_of(e)
        if verdict.kind == "refused" and self._step in (SUBMIT, AGAIN):  # What the server made itself must fit.
            return Verdict("wrong", f"{self._step}: {verdict.text}")
        return Verdict(verdict.kind, f"{verdict.text} [{self._step}]")

    def _ask(self, case: Case, image: str, info: dict, stored) -> Verdict | None:
        file = self.download(image, info.get("name"))
        remark = ""
        try:
            grid = read_as_client(file)
            if grid.reader != "ITK":
                remark = "ITK cannot read the downloaded image"
        except Exception as e:
            return Verdict("wrong", f"the client cannot read the downloaded image {file.name}: {str(e).strip().splitlines()[-1]}")
        if "#" in image and not holds_ball(case, grid):
            return None
        verdicts, value = [], 1
        if case.mask:
            labels, value = _value_at(case, read_as_client(case.mask))
            rows = [{"name": BALL if v == value else f"other {v}", "idx": v} for v in labels]
            self._step = "label"
            self.client.save_label(image, str(case.mask), "original", {"label_info": rows})
            verdicts.append(judge_mask(case, Path(self.client.download_label(image, "original")), value=value))
            k = int(voxel_at(grid, case.centre_lps_mm)[2])
            prompts = {"foreground": [], "mask_slices": [k], "mask_tag": "original"}
        else:
            click = voxel_at(grid, case.centre_lps_mm)
            if (click < 0).any() or (click >= grid.array.shape[:3]).any():
                return Verdict("wrong", f"the ball's centre lies outside the downloaded image (voxel {click.tolist()})")
            prompts = {"foreground": [click.tolist()]}
        params = {**prompts, "background": [], "label": BALL, "result_extension": ".nrrd", "result_dtype": "uint8"}
        self._step = "mask"
        mask, _ = self.client.infer("sam2", image, params)
        verdicts.append(judge_mask(case, Path(mask)))
        if verdicts[-1].kind == "right" and not (case.is_empty and not read_as_client(Path(mask)).array.any()):
            self._step = SUBMIT
            self.client.save_label(image, mask, "final", {"label_info": [{"name": BALL, "idx": 1}]})
            if stored:
                verdicts.append(stored(case))
            self._step = AGAIN
            verdicts.append(judge_mask(case, Path(self.client.download_label(image, "final"))))
        verdict = worst(verdicts)
        return Verdict(verdict.kind, f"{verdict.text}; {remark}") if remark else verdict

    def ask_all(self, case: Case, images: dict[str, dict], plain_id: str, stored=None) -> Verdict:
        """Judge a case that the server lists under any number of ids. If under none or several, ask for its plain id, too."""
        verdicts = {image: self.ask(case, image, info, stored) for image, info in images.items()}
        found = [v for v in verdicts.values() if v is not None]
        if plain_id not in images and (not found or len(images) > 1 or any("#" in i for i in images)):
            found.append(self._refusal_of(plain_id))
        verdict = worst(found)
        right = [f"{i.rpartition('#')[2]}" for i, v in verdicts.items() if v is not None and v.kind == "right" and "#" in i]
        return Verdict(verdict.kind, f"{verdict.text} [right as volume {', '.join(right)}]") if right else verdict

    def _refusal_of(self, image: str) -> Verdict:
        try:
            self.download(image, None)
        except Exception as e:
            verdict = verdict_of(e)
            return Verdict("wrong", f"not listed: {verdict.text}") if "no such image" in verdict.text.lower() else verdict
        return Verdict("wrong", f"{image} can be downloaded, but is not listed")


class StudiesFolder(_Server):
    """A folder with the images of all cases. A single file lies in it directly, other images each in a folder of their own."""

    def __init__(self, folder: Path, cases: list[Case]):
        self._prefixes = {case.name: f"c{n:03d}_" for n, case in enumerate(cases)}
        studies = folder / "studies"
        studies.mkdir()
        for case in cases:
            files, name = case.files(), self._prefixes[case.name] + case.name
            if len(files) == 1 and case.image.is_file():
                ending = case.image.name[case.image.name.index(".") :]
                shutil.copy(case.image, studies / f"{name}{ending}")
            else:
                base = case.image if case.image.is_dir() else case.image.parent
                for file in files:
                    target = studies / name / file.relative_to(base)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(file, target)
        super().__init__(folder, str(studies), [])

    def ask(self, case: Case, image: str | None = None, info: dict | None = None, stored=None) -> Verdict | None:
        """Judge one image, or all that the server lists for a case."""
        if image is not None:
            return super().ask(case, image, info, stored)
        prefix = self._prefixes[case.name]
        images = {i: info for i, info in self.infos().items() if i.startswith(prefix)}
        return self.ask_all(case, images, prefix + case.name)


class DicomStore(_Server):
    """An Orthanc with the series of all DICOM cases."""

    def __init__(self, folder: Path, cases: list[Case]):
        if not orthanc.IS_INSTALLED:
            raise SystemExit("Orthanc with its DICOMweb plugin is not installed; choose other --ways.")
        (folder / "nothing").mkdir()
        processes: list = []
        store = orthanc.start_orthanc(processes, folder / "nothing", free_port())
        self._orthanc = store["dicomweb"].removesuffix("/dicom-web")
        self._series, self._not_stored = {}, {}
        for case in cases:
            if case.is_dicom:
                self._upload(case)
        super().__init__(folder, store["dicomweb"], processes)

    def _upload(self, case: Case) -> None:
        for file in case.files():
            if file.name.upper() == "DICOMDIR":
                continue
            answer = requests.post(f"{self._orthanc}/instances", data=file.read_bytes(), timeout=TIMEOUT_S)
            dataset = pydicom.dcmread(file, force=True, stop_before_pixels=True)
            if not answer.ok:
                self._not_stored[case.name] = f"Orthanc does not take {file.name}"
            elif "Rows" in dataset:
                self._series[case.name] = dataset.StudyInstanceUID, dataset.SeriesInstanceUID

    def ask(self, case: Case, image: str | None = None, info: dict | None = None, stored=None) -> Verdict | None:
        """Judge one image, or all that the server lists for a case."""
        if image is not None:
            return super().ask(case, image, info, stored)
        if not case.is_dicom:
            return Verdict("not asked", "no DICOM")
        if case.name in self._not_stored:
            return Verdict("not asked", self._not_stored[case.name])
        series = self._series[case.name][1]
        try:
            self.download(series, None)
        except Exception as e:  # A series with several volumes is listed as such only after it was asked for.
            verdict = verdict_of(e)
            if verdict.kind != "refused":
                return verdict
        images = {i: info for i, info in self.infos().items() if i.partition("#")[0] == series}
        return self.ask_all(case, images, series, self._judge_stored)

    def _judge_stored(self, case: Case) -> Verdict:
        """Judge the newest DICOM SEG of the case's study by its frames' own positions."""
        study, series = self._series[case.name]
        query = {"Level": "Instance", "Query": {"StudyInstanceUID": study, "Modality": "SEG"}}
        found = requests.post(f"{self._orthanc}/tools/find", json=query, timeout=TIMEOUT_S).json()
        if not found:
            return Verdict("wrong", "no SEG arrived in the store")
        times = {i: requests.get(f"{self._orthanc}/instances/{i}/metadata/ReceptionDate", timeout=30).text for i in found}
        newest = max(found, key=times.get)
        content = requests.get(f"{self._orthanc}/instances/{newest}/file", timeout=TIMEOUT_S).content
        return judge_segmentation(case, hd.seg.segread(BytesIO(content)), _slice_positions(case))


def judge_segmentation(case: Case, segmentation: pydicom.Dataset, source_positions: np.ndarray) -> Verdict:
    """Judge a DICOM SEG by the positions of its frames, each of which must lie on a source slice.

    Args:
        source_positions: ImagePositionPatient (N, 3) of the source's frames.
    """
    frames = frame_points(segmentation)
    points = np.concatenate([points for _, points in frames])
    if not len(points):
        return Verdict("wrong", "the stored SEG is empty")
    farthest_mm = max(np.linalg.norm(source_positions - position, axis=1).min() for position, _ in frames)
    if farthest_mm > ON_SLICE_MM:
        return Verdict("wrong", f"a frame of the stored SEG lies {farthest_mm:.2f} mm beside the source slices")
    if BALL not in [s.SegmentLabel for s in segmentation.SegmentSequence]:
        return Verdict("wrong", "the segment of the stored SEG has another name")
    return judge(case, points.mean(0), len(points) * abs(np.linalg.det(case.affine[:3, :3])))


def _slice_positions(case: Case) -> np.ndarray:
    """Return the ImagePositionPatient (N, 3) of all frames of a case."""
    positions = []
    for file in case.files():
        dataset = pydicom.dcmread(file, force=True, stop_before_pixels=True)
        groups = getattr(dataset, "PerFrameFunctionalGroupsSequence", None)
        if groups is not None:
            positions += [g.PlanePositionSequence[0].ImagePositionPatient for g in groups if "PlanePositionSequence" in g]
        elif getattr(dataset, "ImagePositionPatient", None) and "Rows" in dataset:
            positions.append(dataset.ImagePositionPatient)
    return np.array(positions or [[0, 0, 0]], float)


def voxel_at(grid: Grid, lps_mm) -> np.ndarray:
    """Return the voxel (3,) nearest to a point, as 3D Slicer rounds it."""
    return np.rint(np.linalg.solve(grid.affine[:3, :3], np.asarray(lps_mm) - grid.affine[:3, 3])).astype(int)


def _value_at(case: Case, labels: Grid) -> tuple[list[int], int]:
    """Return the values of a label map and the one at the ball's centre, both as whole numbers."""
    array = labels.array[:, :, :, 0] if labels.array.ndim > 3 else labels.array
    voxel = voxel_at(labels, case.centre_lps_mm).clip(0, np.array(array.shape) - 1)
    return [int(v) for v in np.unique(np.rint(array)) if v], int(np.rint(array[tuple(voxel)]))


def verdict_of(error: Exception) -> Verdict:
    """Return the verdict for what a client raised."""
    found = re.search(r"Status: (\d+); Response: (.*)", getattr(error, "msg", str(error)), re.S)
    if not found:
        return Verdict("crash", f"{type(error).__name__}: {error}"[:300])
    status, text = int(found[1]), found[2].strip()
    with suppress(ValueError, KeyError, TypeError):
        text = json.loads(text)["detail"]
    return refusal(str(text)) if 400 <= status < 500 else Verdict("crash", f"status {status}: {text}"[:300])


WAYS = {"cli": CommandLine, "folder": StudiesFolder, "orthanc": DicomStore}
