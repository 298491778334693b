"""Statistics and augmentation against plain loops and numpy."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from frugal.data.preprocess import Preprocess
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


@pytest.mark.parametrize("wrong", [{"per": "image"}, {"shift": -1}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(SettingsError, match=f"preprocess.{next(iter(wrong))}="):
        Preprocess(**wrong)


def test_shifting_features_is_refused():
    with pytest.raises(SettingsError, match=r"preprocess\.shift"):
        Preprocess(normalize=False, shift=1)(torch.ones(4, 3), training=True)
