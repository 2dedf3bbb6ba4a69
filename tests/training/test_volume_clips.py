"""Tests of training clips of labelled volumes, with a small synthetic volume."""

from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch

from lib.common.errors import UserError
from lib.imaging.datasets import Case
from lib.imaging.frames import Frames
from lib.imaging.volume import Volume
from lib.model.features import SliceFeatures
from lib.training.volume_clips import MIN_PIXELS, VolumeClips, to_square

CUBE, BAR = 1, 4


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A case of 40 x 32 x 12 voxels of 1 x 1 x 3 mm: a cube on slices 3 to 8, a bar through all slices."""
    folder = tmp_path_factory.mktemp("volumes")
    labels = np.zeros((40, 32, 12), np.uint8)
    labels[10:22, 8:20, 3:9] = CUBE
    labels[28:36, 20:30] = BAR
    image = np.random.default_rng(0).normal(100, 5, labels.shape) + 40 * (labels == CUBE) + 80 * (labels == BAR)
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    paths = folder / "a.nii.gz", folder / "a_label.nii.gz"
    for path, array in zip(paths, (image.astype(np.float32), labels), strict=True):
        nib.save(nib.Nifti1Image(array, affine), path)
    return Case("a", *paths, {CUBE: "cube", BAR: "bar", 9: "not in this volume"})


def with_labels(case, *values):
    """Return the case as if only these labels were annotated."""
    return Case(case.name, case.image, case.label, {v: case.labels[v] for v in values})


def make_batches(*cases, seed=1, count=30):
    """Return batches of two clips of four slices with two targets each."""
    torch.manual_seed(seed)
    clips = VolumeClips(cases)
    return [clips.make_batch(4, 64) for _ in range(count)]


def test_the_same_seed_gives_the_same_clips(case):
    first, second, other = (make_batches(case, seed=seed, count=2) for seed in (7, 7, 8))
    for batch, same, different in zip(first, second, other, strict=True):
        assert torch.equal(batch.frames, same.frames) and torch.equal(batch.masks, same.masks)
        assert not torch.equal(batch.frames, different.frames)
    assert not torch.equal(first[0].frames, first[1].frames)


def test_clips_have_the_right_shapes_and_range(case):
    (batch,) = make_batches(case, count=1)
    assert batch.frames.shape == (2, 4, 64, 64) and batch.frames.dtype == torch.float32
    assert batch.masks.shape == (4, 4, 64, 64) and batch.masks.dtype == torch.bool
    assert batch.rows.tolist() == [0, 0, 1, 1] and batch.end_weights.tolist() == [1] * 4
    assert batch.frames.min() >= 0 and batch.frames.max() <= 255 and batch.frames.std() > 10


def test_the_first_slice_always_shows_the_structure(case):
    for cases in ((case,), (with_labels(case, CUBE),), (with_labels(case, CUBE), with_labels(case, BAR))):
        for batch in make_batches(*cases):
            assert (batch.masks[:, 0].flatten(1).sum(1) >= MIN_PIXELS).all()


def test_some_clips_cross_the_end_of_the_structure_and_some_do_not(case):
    has_ended = torch.cat([~b.masks[:, -1].flatten(1).any(1) for b in make_batches(with_labels(case, CUBE))])
    assert 0.5 < has_ended.float().mean() < 0.95


def test_a_structure_through_all_slices_never_ends(case):
    assert all(b.masks.flatten(2).any(2).all() for b in make_batches(with_labels(case, BAR)))


def test_structures_lie_where_the_image_is_brighter(case):
    (batch,) = make_batches(with_labels(case, BAR), count=1)
    for frames, masks in zip(batch.frames, batch.masks[::2], strict=True):
        assert frames[masks].mean() > frames[~masks].mean() + 50


def test_labels_that_are_too_small_are_refused(case):
    with pytest.raises(UserError, match="large enough"):
        VolumeClips((with_labels(case, 9),)).make_batch(4, 64)


def make_anisotropic_frames():
    """Return frames of 40 x 32 voxels of 1 x 2 mm, and labels: on slice 1 a square of 10 x 10 mm (voxels 10-19 by 8-12)."""
    labels = np.zeros((40, 32, 3), np.uint8)
    labels[10:20, 8:13, 1] = 1
    values = labels * 100 + np.arange(40)[:, None, None]
    frames = Frames.of(Volume(values.astype(np.float32), np.diag([1.0, 2.0, 5.0, 1.0])), window="0,255")
    return frames, frames.from_volume(labels)


def test_structures_keep_their_true_aspect():
    frames, labels = make_anisotropic_frames()
    images, masks = to_square(frames, (labels == 1)[None, [1, 0]], [1, 0], 64)
    assert images.shape == (2, 64, 64) and masks.shape == (1, 2, 64, 64)
    ys, xs = np.nonzero(masks[0, 0].numpy())
    assert (xs.min(), xs.max()) == (10, 19) and (ys.min(), ys.max()) == (16, 25), "10 mm are 10 pixels in both directions"
    assert masks[0, 0].sum() == 100 and not masks[0, 1].any()
    assert not images[:, :, 40:].any() and images[:, :, 39].all(), "the rest of the square is empty"


def test_squares_are_the_same_as_those_of_the_engine():
    frames, labels = make_anisotropic_frames()
    engine = SliceFeatures(SimpleNamespace(image_size=96), frames, torch.device("cpu"), None, 1)
    images, masks = to_square(frames, (labels == 1)[None, [1, 2]], [1, 2], 96)
    assert torch.equal(images, engine.squares([1, 2]))
    assert torch.equal(masks[0, 0], engine.mask_to_square(labels[1] == 1)[0, 0] > 0)
