"""Cleaning, statistics and augmentation against plain loops, numpy and values by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from frugal.data.preprocess import Preprocess
from frugal.data.source import Split
from frugal.errors import DataError, SettingsError


@pytest.fixture
def images() -> torch.Tensor:
    """More samples than are summed at once, with channels of unequal means."""
    draw = np.random.Generator(np.random.PCG64(1))
    pixels = draw.integers(0, 256, (700, 3, 5, 4)) // np.array([1, 2, 8]).reshape(1, 3, 1, 1)
    return torch.from_numpy(pixels.astype(np.uint8))


@pytest.mark.parametrize(("per", "axes"), [("dataset", (0, 1, 2, 3)), ("channel", (0, 2, 3)), ("feature", (0,))])
def test_statistics_and_result_are_numpys(images, per, axes):
    plain = images.numpy().astype(np.float64)
    mean, std = plain.mean(axes, keepdims=True), plain.std(axes, keepdims=True)
    preprocess = Preprocess(per=per)
    preprocess.fit(images)
    np.testing.assert_allclose(preprocess.mean, mean.ravel(), rtol=1e-12)
    np.testing.assert_allclose(preprocess.std, std.ravel(), rtol=1e-9)
    before = images.clone()
    out = preprocess(images[:9], training=True)
    assert out.dtype == torch.float32 and out.shape == (9, 3, 5, 4)
    np.testing.assert_allclose(out, ((plain - mean) / std)[:9], atol=1e-5)
    assert torch.equal(images, before)


@pytest.mark.parametrize("per", ["dataset", "channel", "feature"])
def test_features_with_a_large_offset_keep_their_precision(per):
    x = torch.from_numpy(np.random.Generator(np.random.PCG64(2)).normal(1e6, 1, (600, 5)).astype(np.float32))
    preprocess = Preprocess(per=per)
    preprocess.fit(x)
    plain, axes = x.numpy().astype(np.float64), None if per == "dataset" else 0
    np.testing.assert_allclose(preprocess.std, np.atleast_1d(plain.std(axes)), rtol=1e-9)
    np.testing.assert_allclose(preprocess.mean, np.atleast_1d(plain.mean(axes)), rtol=1e-12)


def test_without_normalization_bytes_come_to_one_and_floats_stay(images):
    preprocess = Preprocess(normalize=False)
    assert preprocess.fitted
    out = preprocess(images, training=True)
    torch.testing.assert_close(out, images / 255)
    assert preprocess.state_dict() == {"mean": [], "std": []}
    floats = torch.randn(4, 3)
    assert torch.equal(preprocess(floats, training=False), floats)


def test_a_pixel_that_never_varies_stays_finite():
    x = torch.full((10, 1, 2, 2), 7, dtype=torch.uint8)
    x[:, 0, 0, 0] = torch.arange(10)
    for per in ("feature", "dataset"):
        preprocess = Preprocess(per=per)
        preprocess.fit(x)
        assert preprocess(x, training=False).isfinite().all()
    preprocess = Preprocess(per="feature")
    preprocess.fit(x)
    assert preprocess(x, training=False)[:, 0, 1, 1].eq(0).all()


def test_state_is_plain_and_gives_the_same_result(images):
    fitted, loaded = Preprocess(per="channel"), Preprocess(per="channel")
    fitted.fit(images)
    assert not loaded.fitted
    loaded.load_state_dict(json.loads(json.dumps(fitted.state_dict())))
    assert loaded.fitted
    assert torch.equal(loaded(images, training=False), fitted(images, training=False))
    other = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
    loaded.load_state_dict(other)  # the constants that were ready must not stay
    assert torch.equal(loaded(images, training=False), images.float())


def test_before_fit_it_is_refused(images):
    with pytest.raises(DataError, match="not fitted"):
        Preprocess()(images, training=False)


def test_shifts_by_hand():
    reach, n = 2, 200
    x = torch.arange(n * 2 * 6 * 5).view(n, 2, 6, 5).remainder(251).add(1).to(torch.uint8)
    preprocess = Preprocess(normalize=False, shift=reach)
    out = preprocess(x, True, torch.Generator().manual_seed(3)).mul(255).round().to(torch.uint8)
    down, right = torch.randint(0, 2 * reach + 1, (2, n), generator=torch.Generator().manual_seed(3)).tolist()
    for i in range(n):
        expected = torch.zeros(2, 6, 5, dtype=torch.uint8)
        for row in range(6):
            for column in range(5):
                y, z = row + down[i] - reach, column + right[i] - reach
                if 0 <= y < 6 and 0 <= z < 5:
                    expected[:, row, column] = x[i, :, y, z]
        assert torch.equal(out[i], expected)
    assert {(d, r) for d, r in zip(down, right, strict=True)} == {(d, r) for d in range(5) for r in range(5)}


def test_bent_images_by_hand():
    """Each pixel from where the inverse of rotation @ shear @ scale, in pixels about the centre, says."""
    n, height, width = 12, 6, 5
    x = torch.rand(n, 2, height, width, generator=torch.Generator().manual_seed(1))
    preprocess = Preprocess(normalize=False, rotate=40, scale=0.3, shear=0.5)
    out = preprocess(x, True, torch.Generator().manual_seed(3))
    draws = (torch.rand(4, n, generator=torch.Generator().manual_seed(3)).double() * 2 - 1).numpy()
    for i in range(n):
        angle, shear = np.radians(40 * draws[0, i]), 0.5 * draws[1, i]
        rotation = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        scale = np.diag([1 + 0.3 * draws[2, i], 1 + 0.3 * draws[3, i]])
        inverse = np.linalg.inv(rotation @ np.array([[1, shear], [0, 1]]) @ scale)
        for row in range(height):
            for column in range(width):
                right, down = inverse @ [column - (width - 1) / 2, row - (height - 1) / 2]
                right, down = right + (width - 1) / 2, down + (height - 1) / 2
                expected = np.zeros(2)
                for y in (int(np.floor(down)), int(np.floor(down)) + 1):
                    for z in (int(np.floor(right)), int(np.floor(right)) + 1):
                        if 0 <= y < height and 0 <= z < width:
                            expected += (1 - abs(down - y)) * (1 - abs(right - z)) * x[i, :, y, z].numpy()
                np.testing.assert_allclose(out[i, :, row, column], expected, atol=1e-5)


def test_bent_images_stay_bytes_and_zeros_background(images):
    preprocess = Preprocess(rotate=20, shear=0.2, shift=1)
    preprocess.fit(images)
    assert preprocess.random
    black = torch.zeros(4, 3, 5, 4, dtype=torch.uint8)
    assert torch.equal(preprocess(black, training=True), preprocess(black, training=False))
    hardly = Preprocess(normalize=False, scale=1e-6)
    assert torch.equal(hardly(images, training=True), images.float().mul(1 / 255))  # rounded, not cut
    assert torch.equal(hardly(images, training=False), images.float().mul(1 / 255))
    first, again = (preprocess(images, True, torch.Generator().manual_seed(2)) for _ in range(2))
    assert torch.equal(first, again) and not torch.equal(first, preprocess(images, training=False))


def test_wrong_bends_are_refused():
    with pytest.raises(SettingsError, match=r"preprocess\.rotate=200: it is from 0 to 180"):
        Preprocess(rotate=200)
    with pytest.raises(SettingsError, match=r"preprocess\.scale=1\.0: it is from 0 to 0\.9"):
        Preprocess(scale=1.0)
    with pytest.raises(SettingsError, match=r"preprocess\.shear=-0\.1"):
        Preprocess(shear=-0.1)
    with pytest.raises(SettingsError, match=r"rotate=5\.0, .* bend images \(N, C, H, W\), and these samples are 1-d"):
        Preprocess(normalize=False, rotate=5)(torch.zeros(3, 4), training=True)


def test_shifts_come_before_normalization_so_that_zeros_are_background(images):
    preprocess = Preprocess(shift=1)
    preprocess.fit(images)
    black = torch.zeros(4, 3, 5, 4, dtype=torch.uint8)
    assert torch.equal(preprocess(black, training=True), preprocess(black, training=False))


def test_shifts_are_for_training_alone_and_follow_torchs_generator(images):
    preprocess = Preprocess(normalize=False, shift=2)
    assert preprocess.random and not Preprocess().random
    assert torch.equal(preprocess(images, training=False), images.float().mul(1 / 255))
    torch.manual_seed(5)
    first, second = preprocess(images, training=True), preprocess(images, training=True)
    torch.manual_seed(5)
    assert torch.equal(preprocess(images, training=True), first) and not torch.equal(first, second)


@pytest.mark.parametrize("wrong", [{"per": "image"}, {"shift": -1}, {"broken": "mend"}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(SettingsError, match=f"preprocess.{next(iter(wrong))}="):
        Preprocess(**wrong)


@pytest.mark.parametrize("draw", [{"shift": 1}, {"flip": True}])
def test_moving_and_mirroring_features_is_refused(draw):
    with pytest.raises(SettingsError, match=rf"preprocess\.{next(iter(draw))}="):
        Preprocess(normalize=False, **draw)(torch.ones(4, 3), training=True)


# ------------------------------------------------------------------------------------------------------------ mirroring
def test_about_half_of_the_training_images_are_mirrored_each_whole(images):
    preprocess = Preprocess(normalize=False, flip=True)
    assert preprocess.random
    assert torch.equal(preprocess(images, training=False), images.float().mul(1 / 255))
    out = preprocess(images, True, torch.Generator().manual_seed(1)).mul(255).round().to(torch.uint8)
    mirrored = [torch.equal(a, torch.from_numpy(b.numpy()[..., ::-1].copy())) for a, b in zip(out, images, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(out, images, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True)) and 300 < sum(mirrored) < 400
    again = preprocess(images, True, torch.Generator().manual_seed(1)).mul(255).round().to(torch.uint8)
    assert torch.equal(out, again)


def test_shifts_draw_the_same_with_and_without_mirroring(images):
    shifted = Preprocess(normalize=False, shift=2)(images, True, torch.Generator().manual_seed(2))
    both = Preprocess(normalize=False, shift=2, flip=True)(images, True, torch.Generator().manual_seed(2))
    for one, other in zip(shifted, both, strict=True):
        assert torch.equal(one, other) or torch.equal(one.flip(2), other)
    assert not torch.equal(shifted, both)


# --------------------------------------------------------------------------------------------------------------- tables
def table() -> dict[str, Split]:
    """Columns a, b and one that never varies; in training a NaN, an infinite target, a copy, and one but for its y."""
    nan, inf = float("nan"), float("inf")
    train = [[1, 10, 5], [3, 10, 5], [1, nan, 5], [1, 10, 5], [5, 40, 5], [1, 10, 5], [9, 9, 9]]
    test = [[1, 10, 5], [1, 10, 5], [inf, 0, 0]]
    return {
        "train": Split(np.array(train, np.float32), np.array([2, 4, 2, 2, 9, 3, inf], np.float32)),
        "test": Split(np.array(test, np.float32), np.array([1, 1, 1], np.float32)),
    }


FEATURES = {"per": "feature", "duplicates": True, "broken": "drop", "target": True}


def test_features_by_hand():
    preprocess = Preprocess(**FEATURES)
    splits = preprocess.clean(table(), ["a", "b", "c"])
    # of the seven, the third and the last are broken, the fourth is the first again; copies in test stay
    assert preprocess.counts == {"train": {"broken": 2, "duplicates": 1}, "test": {"broken": 1}}
    assert splits["train"].x.tolist() == [[1, 10, 5], [3, 10, 5], [5, 40, 5], [1, 10, 5]]
    assert splits["train"].y.tolist() == [2, 4, 9, 3] and len(splits["test"]) == 2
    preprocess.fit(torch.from_numpy(splits["train"].x), torch.from_numpy(splits["train"].y))
    # squares about the means: a 2.25 0.25 6.25 2.25; b 56.25 56.25 506.25 56.25; y 6.25 0.25 20.25 2.25
    std = [2.75**0.5, 168.75**0.5]
    np.testing.assert_allclose(preprocess.mean, [2.5, 17.5, 5])
    np.testing.assert_allclose(preprocess.std, [*std, 0], atol=1e-12)
    assert preprocess.target_mean == 4.5 and preprocess.target_std == pytest.approx(7.25**0.5)
    x = torch.tensor([[5.0, 40, 5], [2.5, 17.5, 8]])
    stored = x.clone()
    for _ in range(2):  # the stored samples are not changed by it
        out = preprocess(x, training=False)
        np.testing.assert_allclose(out, [[2.5 / std[0], 22.5 / std[1], 0], [0, 0, 3]], rtol=1e-6)
    assert torch.equal(x, stored)


def test_the_targets_state_comes_along_and_may_be_absent():
    preprocess, other = Preprocess(**FEATURES), Preprocess(**FEATURES)
    preprocess.fit(torch.tensor([[1.0], [3.0]]), torch.tensor([10.0, 30.0]))
    state = json.loads(json.dumps(preprocess.state_dict()))
    assert state == {"mean": [2.0], "std": [1.0], "target_mean": 20.0, "target_std": 10.0}
    other.load_state_dict(state)
    assert other.state_dict() == state
    other.load_state_dict({"mean": [2.0], "std": [1.0]})
    assert (other.target_mean, other.target_std) == (0, 1) and other.fitted
    assert "target_mean" not in Preprocess(per="feature").state_dict()


def test_constant_targets_are_only_centred_and_classes_left_alone():
    preprocess = Preprocess(target=True)
    preprocess.fit(torch.tensor([[1.0], [3.0]]), torch.tensor([7.0, 7.0]))
    assert (preprocess.target_mean, preprocess.target_std) == (7, 1)
    preprocess.fit(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 1]))
    assert (preprocess.target_mean, preprocess.target_std) == (0, 1)


def test_targets_alone_may_be_normalized():
    preprocess = Preprocess(normalize=False, target=True)
    assert not preprocess.fitted
    preprocess.fit(torch.tensor([[1.0], [3.0]]), torch.tensor([10.0, 30.0]))
    assert preprocess.fitted and preprocess.target_std == 10
    assert preprocess(torch.tensor([[3.0]]), training=False).tolist() == [[3.0]]


# ------------------------------------------------------------------------------------------------------------- cleaning
def test_broken_samples_are_refused_by_row_and_column_or_kept():
    with pytest.raises(DataError) as caught:
        Preprocess().clean(table(), ["a", "b", "c"])
    line = str(caught.value)
    assert "train split, row 2 (of 7, from 0): column b is nan" in line and "preprocess.broken=drop" in line
    assert "2 in this split" in line and "\n" not in line
    sound = table()
    sound["train"] = Split(sound["train"].x[:2], sound["train"].y[:2])
    with pytest.raises(DataError, match=r"test split, row 2 .*column 0 is inf"):
        Preprocess().clean(sound)
    kept = Preprocess(broken="keep")
    assert len(kept.clean(table())["train"]) == 7 and kept.counts == {}


def test_what_was_looked_for_is_counted_also_where_there_is_none():
    splits = {name: Split(np.arange(4, dtype=np.float32)[:, None], np.arange(4)) for name in ("train", "val", "test")}
    preprocess = Preprocess(duplicates=True)
    assert preprocess.clean(splits) == splits
    assert preprocess.counts == {"train": {"broken": 0, "duplicates": 0}, "val": {"broken": 0}, "test": {"broken": 0}}
    pixels = {name: Split(np.zeros((4, 1, 2, 2), np.uint8), np.arange(4) // 2) for name in ("train", "test")}
    assert len(preprocess.clean(pixels)["train"]) == 2 and preprocess.counts == {"train": {"duplicates": 2}}
    plain = Preprocess()
    assert plain.clean(pixels) == pixels and plain.counts == {}  # bytes cannot be broken
