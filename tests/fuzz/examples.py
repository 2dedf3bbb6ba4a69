"""Hypothesis strategies for what the fuzz tests send: names, tags, fields of requests and files, both valid and invalid ones."""

import gzip
import io
import json
import math
import tarfile
from urllib.parse import quote

import nibabel as nib
import numpy as np
from hypothesis import strategies as st

CLICK = [20, 24, 4]
GOOD = {"params": json.dumps({"foreground": [CLICK]})}
TEXT = st.text(st.characters(exclude_categories=()), max_size=20)  # This includes NUL, line ends and lone surrogates.
NUMBER = st.one_of(
    st.integers(-5, 60), st.floats(), st.sampled_from([2**31, -(2**63), 2**64, 10**400, 1e308, 0.49, -0.0, math.nan, math.inf])
)
SIMPLE = st.one_of(st.none(), st.booleans(), NUMBER, TEXT)
JSON = st.recursive(SIMPLE, lambda s: st.lists(s, max_size=4) | st.dictionaries(TEXT, s, max_size=3), max_leaves=8)
POINT = st.lists(st.one_of(st.integers(-2, 49), NUMBER, SIMPLE), max_size=4) | st.just(CLICK)
NAMES = [
    "small", "small.nii.gz", "../canary", "../canary.txt", "../canary.nii.gz", "..", ".", "", "/etc/passwd", "../../../../etc/passwd",
    "a/b", "a\\b", "..\\canary", "small/../../canary", "%2e%2e%2fcanary", "..%2fcanary.txt", "%00", "small\0.nii.gz", "\0", "x" * 300,
    "y" * 9000, "é", "肝", "a b", "a\nb", "~root", "${HOME}", "-rf", "*", "file:///etc/passwd", "labels", ".lock", "sam2_rounds", "null",
]  # fmt: skip
NAME = st.sampled_from(NAMES) | TEXT
TAG = NAME | st.sampled_from(["final", "original", "../../elsewhere", "/tmp/tag"])
FIELDS = {
    "foreground": st.lists(POINT, max_size=3), "background": st.lists(POINT, max_size=3),
    "boxes": st.lists(st.lists(POINT, max_size=3), max_size=2),
    "absent": st.lists(NUMBER, max_size=3), "roi": st.lists(NUMBER, min_size=5, max_size=7), "slice": NUMBER, "label": NAME,
    "window": st.sampled_from(["lung", "1,2", "2,1", "nan,inf", "0,0", ",", "1e999,3", [0, 1]]),
    "axis": st.sampled_from([0, "1", 2, -1, "k", 1.5]), "checkpoint": NAME, "direction": NAME, "components": NAME,
    "device": st.sampled_from(["cpu", "cuda", "cuda:99", "mps", "meta", "cpu:7", "xla"]),
    "z_range": st.one_of(st.lists(NUMBER, max_size=3), st.sampled_from(["1,3", "3", "9,1", "nan,2", "1,2,3"])),
    "stop_mm": NUMBER, "stride": NUMBER, "focus": SIMPLE, "largest_cc": SIMPLE, "result_compress": SIMPLE, "result_extension": NAME,
    "mask_slices": st.lists(NUMBER, max_size=3), "mask_tag": TAG,
    "result_dtype": st.sampled_from(["float32", "int64", "U99", "O", "V9", ">i2", "uint8,uint8", "(3,)u1", "datetime64"]),
    "image": NAME | JSON, "image_id": NAME, "model": NAME, "session": JSON, "client_id": JSON, "label_info": JSON, "description": JSON,
    "save_label": st.booleans(), "label_tag": TAG, "timeout": NUMBER, "selected_label_name": NAME, "restore_label_idx": JSON,
}  # fmt: skip
PARAMS = st.builds(
    lambda click, mostly_valid, arbitrary: {**click, **mostly_valid, **arbitrary},
    st.sampled_from([{}, {"foreground": [CLICK]}, {"foreground": [CLICK]}, {"foreground": [CLICK], "background": [[2, 2, 4]]}]),
    st.lists(st.sampled_from(sorted(FIELDS)), max_size=2, unique=True).flatmap(
        lambda keys: st.fixed_dictionaries({k: FIELDS[k] for k in keys})
    ),
    st.dictionaries(st.sampled_from(sorted(FIELDS)), JSON, max_size=2),
)  # fmt: skip
NO_JSON = st.sampled_from([
    "", " ", "{", "[]", "null", "7", '"a"', "NaN", "{'a': 1}", "[" * 50000, '{"a":' * 50000, '{"foreground": 1e999}', "\0", "{}{}",
    '{"roi": "[[["}', '{"slice": ' + "9" * 5000 + "}", '{"foreground": [[1,1,1]], "foreground": 7}',
])  # fmt: skip
MODEL = st.sampled_from(["sam2", "sam2", "sam2_slice", "sam2_scribbles"])
ENDING = st.sampled_from([".nii.gz", ".nii", ".nrrd", ".bin", ".png", ".txt", "", ".nii.gz/../../x", "." * 40, "\0", ".gz" * 90, ".zip"])


def mostly(valid, others):
    """Return a strategy that gives the valid value in two of three examples, so that the server also checks the other fields."""
    return st.one_of(st.just(valid), st.just(valid), others)


def some(**fields):
    """Return a strategy for JSON objects that have any of the given fields."""
    return st.fixed_dictionaries({}, optional=fields)


def finite(params):
    """Return the parameters with NaN and infinities as text, because `requests` refuses to send them as JSON."""
    return json.loads(json.dumps(params), parse_constant=str)


def segment(name: str) -> str:
    """Return a name quoted as one part of a path."""
    return quote(name, safe="", errors="replace")


def archive(name: str) -> bytes:
    """Return a tar file with one member of that name, which may point outside the folder where it is unpacked."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.size = 3
        tar.addfile(member, io.BytesIO(b"bad"))
    return file.getvalue()


WHOLE = gzip.compress(nib.Nifti1Image(np.ones((48, 48, 8), np.uint8), np.diag([2.0, 2.0, 5.0, 1.0])).to_bytes(), mtime=0)
CONTENT = st.sampled_from([b"", b"text\n" * 50, WHOLE, WHOLE[:90], gzip.compress(bytes(400), mtime=0), bytes(48 * 48 * 8)]) | st.binary(max_size=40)
FILE = st.tuples(st.builds(lambda name, ending: name[:80] + ending, NAME, ENDING), CONTENT)
