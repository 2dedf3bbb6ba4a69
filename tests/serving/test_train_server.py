"""Tests of training through a real server: on submitted labels, beside inference, stopped by the client."""

import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.serving.faults import wait_until, write_ball_volumes
from tests.serving.processes import free_port
from tests.serving.test_server import run_server, slicer_client

pytestmark = pytest.mark.server

SHORT_TRAINING = {"max_epochs": 1, "steps_per_epoch": 1}


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """Return the folder of three small volumes with a bright ball each, and the folder of the balls' masks."""
    folder, reference = tmp_path_factory.mktemp("studies"), tmp_path_factory.mktemp("reference")
    for mask in write_ball_volumes(folder):
        mask.rename(reference / f"{mask.stem}.nii.gz")
    return folder, reference


@pytest.fixture(scope="module")
def server(studies, tmp_path_factory):
    conf = ["--conf", "versions", str(tmp_path_factory.mktemp("versions"))]
    yield from run_server(studies[0], tmp_path_factory.mktemp("elsewhere"), free_port(), conf)


@pytest.fixture
def client(server, tmp_path):
    return slicer_client()(server, tmpdir=str(tmp_path), client_id="test")


def wait_for_status(client, *states, seconds=300):
    """Wait until the training has one of the states and return its status."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        status = client.train_status()
        if status["status"] in states:
            return status
        time.sleep(0.3)
    raise AssertionError(f"still {status}")


def infer(client):
    """Click on the first ball and return the JSON answer."""
    path, answer = client.infer("sam2", "ball_0", {"foreground": [[20, 24, 4]], "result_extension": ".nii.gz"})
    assert np.asarray(nib.load(path).dataobj)[20, 24, 4] == 1
    return answer


def test_training_needs_two_labelled_volumes(client):
    client.train_start("sam2", SHORT_TRAINING)
    status = wait_for_status(client, "DONE", "ERROR")
    assert status["status"] == "ERROR"
    assert "at least two labelled volumes" in "\n".join(status["details"])
    assert "at least two labelled volumes" in client.info()["train_stats"]["sam2"]["message"]


def test_the_next_answer_uses_the_new_version_if_it_is_better(client, studies):
    for n in range(3):
        client.save_label(f"ball_{n}", str(studies[1] / f"ball_{n}.nii.gz"), "final", {"label_info": [{"name": "ball", "idx": 1}]})
    assert infer(client)["checkpoint"] == "embedded"
    client.train_start("sam2", SHORT_TRAINING)
    status = wait_for_status(client, "DONE", "ERROR")
    assert status["status"] == "DONE", "\n".join(status["details"])
    stats = client.info()["train_stats"]["sam2"]
    assert stats["epoch"] == 1 and 0 <= stats["best_metric"] <= 1
    assert stats["accepted"] == (stats["best_metric"] > stats["base_metric"])
    answer = infer(client)
    assert answer["checkpoint"] == ("embedded/v0001" if stats["accepted"] else "embedded")
    assert answer["slices_encoded"] == 0, "the encoder was frozen, so features stay valid"
    assert Path(stats["version"]).is_file()


def test_a_client_can_stop_training_and_go_on_segmenting(client):
    client.train_start("sam2", {"max_epochs": 50, "steps_per_epoch": 50})
    wait_until(lambda: "Before training" in "\n".join(client.train_status().get("details", ())))
    client.train_stop()
    assert wait_for_status(client, "STOPPED", "ERROR")["status"] == "STOPPED"
    infer(client)


def test_wrong_options_are_refused_with_a_sentence(client):
    client.train_start("sam2", {"parts": "heart"})
    status = wait_for_status(client, "DONE", "ERROR")
    assert status["status"] == "ERROR" and "decoder, lora, all" in "\n".join(status["details"])
