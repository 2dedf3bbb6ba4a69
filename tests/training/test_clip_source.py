"""Tests of training clips that are made in batches: generated ones, and ones of a small packed folder."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch

from lib.common.errors import UserError
from lib.imaging.datasets import read_cases
from lib.training.batch_random import BatchRandom
from lib.training.clip_sheet import draw_sheet
from lib.training.clip_source import BatchPlan, ClipSource
from lib.training.generated_targets import MIN_PIXELS, choose_targets
from lib.training.packed_volumes import PackedVolumes, make_mosaic, read_mosaic
from lib.training.volume_pack import find_regions, held_back_cases, is_held_back, pack, to_bytes

NAMES = [n for n in (f"ct_ball_{k:03}" for k in range(60)) if not is_held_back(n)][:2] + ["ct_empty_001"]
HELD_BACK = next(n for n in (f"ct_ball_{k:03}" for k in range(60)) if is_held_back(n))


@pytest.fixture(scope="module")
def decathlon(tmp_path_factory):
    """A folder with three labelled volumes, of which one is held back, and one without labels; each has a bright ball on noise."""
    folder = tmp_path_factory.mktemp("decathlon")
    i, j, k = np.meshgrid(np.arange(40), np.arange(36), np.arange(16), indexing="ij")
    ball = ((i - 20) ** 2 + (j - 18) ** 2 + (2.5 * (k - 8)) ** 2 < 100).astype(np.uint8)
    rows = []
    for n, name in enumerate([*NAMES, HELD_BACK]):
        image = np.random.default_rng(n).normal(100, 5, ball.shape) + 100 * ball
        nib.save(nib.Nifti1Image(image.astype(np.float32), np.diag([1, 1, 2.5, 1])), folder / f"{name}.nii.gz")
        rows.append({"image": f"./{name}.nii.gz", "licence": "CC0"})
        if "ball" in name:
            nib.save(nib.Nifti1Image(ball, np.diag([1, 1, 2.5, 1])), folder / f"{name}_label.nii.gz")
            rows[-1]["label"] = f"./{name}_label.nii.gz"
    (folder / "dataset.json").write_text(json.dumps({"labels": {"1": "ball"}, "training": rows}))
    return folder


@pytest.fixture(scope="module")
def packed(decathlon, tmp_path_factory):
    out = tmp_path_factory.mktemp("packed")
    assert pack([decathlon], out) == len(NAMES)
    return out


def make_batch(seed: int, clips: ClipSource, slices: int = 5, side: int = 64):
    torch.manual_seed(seed)
    return clips.make_batch(slices, side)


def test_the_same_seed_gives_the_same_clips():
    clips = ClipSource("cpu", plan=BatchPlan(2))
    first, second, other = (make_batch(seed, clips) for seed in (5, 5, 6))
    assert torch.equal(first.frames, second.frames) and torch.equal(first.masks, second.masks)
    assert not torch.equal(first.frames, other.frames)


def test_generated_clips_are_in_range_and_some_targets_end():
    batch = make_batch(1, ClipSource("cpu", plan=BatchPlan(16, objects=2)), side=96)
    assert batch.frames.shape == (16, 5, 96, 96) and batch.masks.shape == (32, 5, 96, 96)
    assert batch.rows.tolist() == [n // 2 for n in range(32)]
    assert batch.frames.min() >= 0 and batch.frames.max() <= 255 and batch.frames.isfinite().all()
    shown = batch.masks[:, 0].flatten(1).sum(1) >= MIN_PIXELS
    assert shown.float().mean() > 0.9
    has_ended = ~batch.masks[shown, -1].flatten(1).any(1)
    assert 0.1 < has_ended.float().mean() < 0.9, "some targets must end within the clip, and some must not"


def test_targets_of_one_clip_differ():
    labels = torch.zeros(1, 2, 30, 30, dtype=torch.uint8)
    for value, (y, x) in {8: (2, 2), 10: (2, 20), 12: (20, 2)}.items():
        labels[:, :, y : y + 6, x : x + 6] = value
    torch.manual_seed(0)
    masks = choose_targets(BatchRandom(), labels, 3)[0]
    assert sorted(int(labels[0][m].unique()) for m in masks) == [8, 10, 12]


def test_a_batch_holds_each_kind_of_clip(packed):
    volumes = PackedVolumes(packed)
    assert set(volumes.structures) == {"labels"}, "volumes so small have no regions"
    batch = make_batch(1, ClipSource("cpu", volumes, BatchPlan(1, labelled=3, regions=2, objects=2)))
    assert len(batch.frames) == 4 and batch.rows.tolist() == [0, 1, 2, 3, 3]
    assert batch.end_weights.tolist() == [1] * 5


def test_clips_of_packed_volumes_show_their_structure(packed):
    torch.manual_seed(3)
    image, mask = PackedVolumes(packed).sample(BatchRandom(), "labels", 12, 5, 64)
    assert image.shape == mask.shape == (12, 5, 64, 64) and image.min() >= 0 and image.max() <= 1
    is_shown = mask[:, 0].flatten(1).amax(1) >= 0.5
    assert is_shown.float().mean() > 0.8
    assert image[mask > 0.9].mean() > image[(mask < 0.1) & (image > 0)].mean() + 0.2


def test_a_patient_who_is_held_back_is_not_packed_but_validated(decathlon, packed):
    assert {row["name"] for row in json.loads((packed / "index.json").read_text())} == set(NAMES)
    cases = [c for c in read_cases_with_labels(decathlon)]
    assert [c.name for c in held_back_cases(cases)] == [HELD_BACK]
    with pytest.raises(UserError, match="held back"):
        held_back_cases([c for c in cases if c.name != HELD_BACK])


def read_cases_with_labels(folder):
    """Return the labelled cases of the folder."""
    content = json.loads((folder / "dataset.json").read_text())
    content["training"] = [r for r in content["training"] if "label" in r]
    (folder / "labelled").mkdir(exist_ok=True)
    for row in content["training"]:
        row["image"], row["label"] = (f"../{row[k]}" for k in ("image", "label"))
    (folder / "labelled" / "dataset.json").write_text(json.dumps(content))
    return read_cases(folder / "labelled")


def test_folders_without_volumes_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"dataset\.json"):
        pack([tmp_path], tmp_path / "out")
    (tmp_path / "dataset.json").write_text('{"training": []}')
    with pytest.raises(UserError, match="no volume"):
        pack([tmp_path], tmp_path / "out")
    with pytest.raises(UserError, match="command pack"):
        PackedVolumes(tmp_path)


def test_volumes_that_would_be_mixed_up_are_refused(decathlon, tmp_path):
    with pytest.raises(UserError, match="Two volumes have the name ct_ball"):
        pack([decathlon, decathlon], tmp_path)


def test_names_with_dots_are_names_of_their_own(tmp_path):
    for number in (1, 2):
        nib.save(nib.Nifti1Image(np.full((8, 8, 4), number, np.float32), np.eye(4)), tmp_path / f"ct_a.{number}.nii.gz")
    (tmp_path / "dataset.json").write_text('{"training": [{"image": "ct_a.1.nii.gz"}, {"image": "ct_a.2.nii.gz"}]}')
    assert pack([tmp_path], tmp_path / "out") == len(list((tmp_path / "out").glob("*.jpg"))) == 2


@pytest.mark.parametrize("shape", [(3, 20, 8), (5, 30_000, 2), (4, 16_384, 1)])
def test_mosaics_keep_stacks_of_any_size(shape, tmp_path):
    stack = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    make_mosaic(stack).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mosaic(tmp_path / "a.png", shape), stack)
    make_mosaic(stack).save(tmp_path / "a.jpg")


def test_packed_intensities_keep_the_contrast_of_soft_tissue():
    array = np.sort(np.concatenate([np.linspace(-1000, 1500, 60), np.linspace(-100, 100, 66)])).reshape(6, 21, 1)
    values = to_bytes(array).astype(int).ravel()
    assert values[0] == 0 and values[-1] == 255 and (np.diff(values) >= 0).all()
    of_soft_tissue = np.interp(40, array.ravel(), values) - np.interp(-60, array.ravel(), values)
    assert of_soft_tissue > 30, "100 HU of soft tissue are more than 10 % of the range"


def test_regions_follow_the_edges_of_the_image():
    image = np.full((16, 40, 40), 60, np.uint8)
    image[4:12, 8:20, 8:20] = 140
    image[:, 25:35, 25:35] = 220
    [regions] = find_regions(image, (1.0, 1.0, 1.0), [0.05])
    assert regions.shape == image.shape
    for value in (140, 220):
        region = np.bincount(regions[image == value]).argmax()
        assert region > 0 and (image[regions == region] == value).mean() > 0.75


def test_a_sheet_shows_the_clips(tmp_path, packed):
    path = draw_sheet(str(tmp_path / "sheet.png"), ClipSource("cpu", PackedVolumes(packed)), slices=2, side=48)
    assert (tmp_path / "sheet.png").stat().st_size > 1000 and path.endswith("sheet.png")
