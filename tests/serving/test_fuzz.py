"""Tests of random and hostile requests to a real server.

No answer may have status 500 or show a traceback, each refusal must hold a sentence, and nothing may be written outside the studies.
The examples are the same in every run. For a longer run with other examples:
  FUZZ_FACTOR=20 pytest tests/serving/test_fuzz.py --hypothesis-seed=random
"""

import gzip
import hashlib
import json
import os
import time
from urllib.parse import quote

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.examples import (
    CLICK,
    FILE,
    GOOD,
    JSON,
    MODEL,
    NAME,
    NAMES,
    NO_JSON,
    NUMBER,
    PARAMS,
    TAG,
    TEXT,
    WHOLE,
    archive,
    finite,
    mostly,
    segment,
    some,
)
from tests.fuzz.raw_client import TIMEOUT_S, RawClient
from tests.serving.processes import free_port
from tests.serving.test_server import ROOT, run_server

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("before")]

FACTOR = int(os.environ.get("FUZZ_FACTOR", "1"))
SECRET = b"CANARY-in-the-folder-beside"


def fuzz(examples: int) -> settings:
    """Return hypothesis settings for a number of examples, times FUZZ_FACTOR."""
    return settings(
        max_examples=examples * FACTOR, derandomize=FACTOR == 1, deadline=None, database=None, suppress_health_check=list(HealthCheck),
    )  # fmt: skip


# --- the server and its surroundings ---------------------------------------------------------------------------------
def listing(folder, *excluded) -> dict[str, str]:
    """Return the digests of all files below a folder by path, without files and folders of the excluded names."""
    paths = (p for p in folder.rglob("*") if not set(p.relative_to(folder).parts) & set(excluded))
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "folder" for p in paths}


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    """Return a folder with the studies and, beside them, files that the server must neither read nor change."""
    folder = tmp_path_factory.mktemp("base")
    for name in ("studies", "versions", "elsewhere", "temporary", "sessions"):
        (folder / name).mkdir()
    x, y, z = np.meshgrid(np.arange(48), np.arange(48), np.arange(8), indexing="ij")
    ball = ((x - 20) / 9) ** 2 + ((y - 24) / 9) ** 2 + ((z - 4) / 3.2) ** 2 < 1
    noise = np.random.default_rng(0).normal(0, 8, ball.shape)
    image = nib.Nifti1Image((80 + 90 * ball + noise).astype(np.int16), np.diag([2.0, 2.0, 5.0, 1.0]))
    for name in ("keep", "small"):
        nib.save(image, folder / "studies" / f"{name}.nii.gz")
    nib.save(image, folder / "canary.nii.gz")
    (folder / "canary.txt").write_bytes(SECRET)
    return folder


@pytest.fixture(scope="module")
def server(base_folder):
    """Yield a client of a server whose temporary files and sessions lie in the base folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(base_folder / "temporary"))
        patch.setenv("MONAI_LABEL_SESSION_PATH", str(base_folder / "sessions"))
        conf = ["--conf", "labels", "spleen,liver", "--conf", "versions", str(base_folder / "versions")]
        for address in run_server(base_folder / "studies", base_folder / "elsewhere", free_port(), conf):
            yield RawClient(address, SECRET)


@pytest.fixture(scope="module")
def mask(server):
    """Return the answer to a correct click before any other request."""
    return correct_click(server)


def correct_click(server) -> np.ndarray:
    """Return the mask of a click on the ball."""
    params = {"foreground": [CLICK], "label": "spleen", "result_extension": ".nii.gz"}
    status, content = server("POST", "/infer/sam2", {"image": "keep", "output": "image"}, data={"params": json.dumps(params)})
    assert status == 200
    return np.asarray(nib.Nifti1Image.from_bytes(gzip.decompress(content)).dataobj)


@pytest.fixture(scope="module")
def before(base_folder, mask):
    """Return the surroundings before the tests."""
    return surroundings(base_folder)


def surroundings(base_folder) -> tuple[dict, dict]:
    """Return what lies beside the studies and in the folder of the app."""
    app = listing(ROOT / "apps", "__pycache__", "logs")
    return listing(base_folder, "studies", "temporary", "sessions", "log.txt"), app


# --- the model -------------------------------------------------------------------------------------------------------
@given(MODEL, PARAMS)
@fuzz(150)
def test_params(server, model, params):
    server("POST", f"/infer/{model}", {"image": "small", "output": "image"}, data={"params": json.dumps(params)})


OUTPUT = mostly("image", st.sampled_from(["json", "all", "dicom_seg", "dsa"]) | TEXT)


@given(mostly("sam2", NAME), OUTPUT, NO_JSON | JSON.map(json.dumps), mostly("small", NAME), mostly("", NAME))
@fuzz(60)
def test_models_images_sessions_and_text(server, model, output, params, image, session):
    server("POST", f"/infer/{segment(model)}", {"image": image}, data={"params": "{}"})
    server("POST", "/infer/sam2", {"image": image, "session_id": session, "output": output}, data=GOOD)
    server("POST", "/infer/sam2", {"image": "small"}, data={"params": params})


@given(st.sampled_from(["sam2_scribbles", "sam2"]), FILE, st.sampled_from(["file", "label"]), PARAMS)
@fuzz(60)
def test_uploads(server, model, file, field, params):
    server("POST", f"/infer/{model}", {"image": "small"}, data={"params": json.dumps(params)}, files={field: file})


META = b"ObjectType = Image\nNDims = 65536\nDimSize = 4 4 4\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
NRRD = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 30000 30000 3000\nencoding: raw\nendian: little\n\n"


@pytest.mark.parametrize("name, content", [("a.mha", META), ("a.nrrd", NRRD)])
@pytest.mark.parametrize("field", ["file", "label"])
def test_headers_that_claim_too_much(server, name, content, field):
    status, answer = server("POST", "/infer/sam2", {"image": "small"}, data=GOOD, files={field: (name, content)})
    assert status == 400 and b"claims" in answer


CONTENT_TYPES = [
    "application/json", "multipart/form-data", "multipart/form-data; boundary=a", "a/b", "", "application/x-www-form-urlencoded",
]  # fmt: skip


@given(st.binary(max_size=60), st.sampled_from(CONTENT_TYPES))
@fuzz(25)
def test_bodies_that_are_no_form(server, body, content_type):
    for method, path in (("POST", "/infer/sam2"), ("PUT", "/datastore/label"), ("PUT", "/session/"), ("POST", "/activelearning/first")):
        server(method, path, {"image": "small"}, data=body, headers={"Content-Type": content_type})


@pytest.mark.parametrize("field", ["image", "image_id", "label", "checkpoint", "session", "path"])
def test_files_of_the_server_are_not_read(base_folder, server, field):
    params = {"foreground": [CLICK], field: str(base_folder / "canary.nii.gz")}
    status, content = server("POST", "/infer/sam2", {"image": "../canary"}, data={"params": json.dumps(params)})
    assert status >= 400, content
    assert server("POST", "/infer/sam2", {"image": str(base_folder / "canary.nii.gz")}, data={"params": json.dumps(params)})[0] >= 400


# --- MONAI Label's own routes ----------------------------------------------------------------------------------------
READ_PATHS = ["/datastore/image", "/datastore/label", "/datastore/image/info", "/datastore/label/info"]


@given(mostly("small", NAME), mostly("final", TAG), st.sampled_from(READ_PATHS), mostly("", TEXT))
@fuzz(60)
def test_datastore_is_read(server, name, tag, path, check):
    server("GET", path, {"image": name, "label": name, "tag": tag})
    server("HEAD", path, {"image": name, "tag": tag, "check_sum": check})
    server("GET", "/datastore/", {"output": tag})
    server("GET", "/datastore/dataset", {"limit_cases": check})


OBJECT = some(label_info=JSON, name=JSON, ts=JSON) | st.dictionaries(TEXT, JSON, max_size=3)


@given(mostly("small", NAME), mostly("final", TAG), mostly(("a.nii.gz", WHOLE), FILE), NO_JSON | OBJECT.map(json.dumps))
@fuzz(60)
def test_datastore_is_written(server, name, tag, file, params):
    image = name if name != "keep" else "small"
    server("PUT", "/datastore/label", {"image": image, "tag": tag}, data={"params": params}, files={"label": file})
    server("PUT", "/datastore/image/info", {"image": image}, data={"info": params})
    server("PUT", "/datastore/label/info", {"label": image, "tag": tag}, data={"info": params})
    new = f"new{image}" if image.startswith("small") else image
    server("PUT", "/datastore/", {"image": new}, data={"params": params}, files={"file": file})
    for path in READ_PATHS:  # Whatever the server accepted can be read again.
        server("GET", path, {"image": image, "label": image, "tag": tag})
    server("GET", "/datastore/", {"output": "all"})
    server("DELETE", "/datastore/label", {"id": image, "tag": tag})
    if image != "small":
        server("DELETE", "/datastore/", {"id": image})


ARCHIVE = st.builds(lambda n, t: (n + ".tar", archive(t)), NAME, st.sampled_from(["../evil", "../../evil", "/tmp/x/../../evil", "a"]))


@given(st.lists(FILE | ARCHIVE, max_size=2), st.sampled_from(["true", "false", "x"]), NUMBER.map(str) | TEXT, NAME)
@fuzz(40)
def test_sessions(server, files, uncompress, expiry, name):
    query = {"uncompress": uncompress, "expiry": expiry}
    status, content = server("PUT", "/session/", query, files=[("files", f) for f in files] or None)
    session = json.loads(content)["session_id"] if status == 200 else segment(name)
    server("GET", f"/session/{session}", {"image": "true", "update_ts": uncompress})
    server("POST", "/infer/sam2", {"session_id": session}, data=GOOD)
    server("DELETE", f"/session/{session}")


SAMPLE = some(target_dice=JSON, max_rounds=JSON, label_tag=JSON, labels=JSON, client_id=JSON, strategy=JSON)


STRATEGY = st.sampled_from(["worst_slice", "worst_volume", "any_volume", "first", "random"])


@given(mostly("worst_slice", STRATEGY | NAME), SAMPLE | JSON)
@fuzz(60)
def test_next_sample(server, strategy, params):
    server("POST", f"/activelearning/{segment(strategy)}", json=finite(params))
    server("POST", "/activelearning/first")


SCORING = some(y=mostly("final", TAG), y_pred=mostly("session", TAG | JSON), method=NAME)


@given(st.sampled_from(["slice_dice", "slice_quality"]), SCORING | JSON)
@fuzz(50)
def test_scoring(server, method, params):
    """Scoring runs in the server's process, so that the answer comes when it has finished."""
    server("POST", f"/scoring/{method}", {"run_sync": "true"}, json=finite(params))


@given(NAME, JSON, st.sampled_from(["true", "false", "maybe"]))
@fuzz(20)
def test_tasks_that_do_not_start(server, name, params, flag):
    for path in ("/scoring/", "/train/", "/batch/infer/"):
        server("POST", f"{path}no{segment(name)}", {"run_sync": flag, "enqueue": flag, "images": name}, json=finite(params))
        server("GET", "/batch/infer" if "batch" in path else path, {"all": flag, "check_if_running": flag})


@given(some(max_epochs=JSON, val_split=JSON, parts=JSON, learning_rate=NUMBER, device=NAME, model=NAME))
@fuzz(4)
def test_training_is_stopped_at_once(server, params):
    server("POST", "/train/sam2", json=finite(params))
    deadline = time.monotonic() + TIMEOUT_S
    while json.loads(server("GET", "/train/")[1]).get("status") in ("SUBMITTED", "RUNNING"):
        assert time.monotonic() < deadline
        server("DELETE", "/train/")
        time.sleep(0.1)


@given(st.sampled_from(["/sam2/", "/sam2/state", "/sam2/thumbnail", "/sam2/ohif"]), NAME, TEXT | NUMBER.map(str), NAME | st.just("spleen"))
@fuzz(60)
def test_pages(server, path, image, number, structure):
    server("GET", path, {"image": image, "slice": number, "page": number, "structure": structure})


NAMED_PATHS = [
    "/", "/logs/", "/logs/gpu", "/model/", "/model/info/", "/ohif/", "/proxy/dicom/", "/proxy/dicom/wado/", "/sam2/", "/session/",
]  # fmt: skip


@given(NAME, st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD"]), NUMBER.map(str), FILE)
@fuzz(60)
def test_other_addresses(server, name, method, number, file):
    query, files = {"lines": number, "html": number, "refresh": number, "expiry": number}, {"file": file} if method == "PUT" else None
    for path in NAMED_PATHS:
        server(method, path + quote(name, safe="/%", errors="replace"), query, files=files)
        server(method, path, query)


def test_every_name_in_every_address(server):
    """Each hostile name is sent everywhere an address holds a name."""
    for name in NAMES:
        for path in (*NAMED_PATHS, "/infer/", "/activelearning/", "/scoring/", "/train/", "/batch/infer/"):
            server("GET", path + quote(name, safe="/%"), {"image": "true"})
            server("POST", path + quote(name, safe="%"), data=GOOD)
        for path in READ_PATHS:
            server("GET", path, {"image": name, "label": name, "tag": "final"})
            server("GET", path, {"image": "small", "label": "small", "tag": name})


# --- afterwards ------------------------------------------------------------------------------------------------------
def test_the_server_still_answers_and_wrote_nothing_elsewhere(base_folder, server, mask, before):
    assert mask[tuple(CLICK)] == 1 and 100 < mask.sum() < 2000
    np.testing.assert_array_equal(correct_click(server), mask)
    assert surroundings(base_folder) == before
    assert server("GET", "/info/")[0] == 200
