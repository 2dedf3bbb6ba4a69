"""What the trainings of the small networks share: the loss, the choice of samples, and their file."""

import numpy as np
import pytest
import torch

from lib.common.errors import UserError
from lib.model.u_net import SIDE
from lib.training.correction_training import CorrectionTraining
from lib.training.session_training import SessionSettings, load_or_make, mask_loss, random_sample
from tests.training.drawn_discs import disc


def test_the_loss_is_least_where_the_mask_is_right():
    reference = torch.from_numpy(disc(SIDE, 48, 48, 20)).float()[None]
    right, moved = (reference * 10 - 5, reference.roll(5, 1) * 10 - 5)
    assert mask_loss(right, reference) < mask_loss(moved, reference) < mask_loss(-right, reference)


def test_an_empty_target_asks_for_an_empty_mask():
    nothing = torch.zeros(1, SIDE, SIDE)
    assert mask_loss(nothing - 5, nothing) < 0.05 < mask_loss(nothing + 5, nothing)


def test_kinds_are_drawn_by_their_shares():
    random = np.random.default_rng(0)
    drawn = [random_sample({"regions": 3, "liver": 5, "spleen": 1}, {"regions": 0.5}, random) for _ in range(400)]
    kinds = [kind for kind, _ in drawn]
    assert abs(kinds.count("regions") - 200) < 40 and abs(kinds.count("spleen") - 100) < 35
    assert {n for kind, n in drawn if kind == "liver"} == set(range(5))


def test_samples_are_made_once(tmp_path):
    made = {"left kidney": {"images": np.arange(3)}, "a/b": {"images": np.zeros(2)}}
    for make in (lambda: made, None):
        samples = load_or_make(tmp_path / "samples.npz", make)
        assert samples.keys() == made.keys()
        assert all((samples[k]["images"] == made[k]["images"]).all() for k in made)


def test_a_run_needs_a_duration(tmp_path):
    with pytest.raises(UserError, match="minutes"):
        CorrectionTraining(SessionSettings(tmp_path, minutes=0))
