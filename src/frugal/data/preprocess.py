"""From stored samples to a network's inputs: cleaning before anything else; then, a batch at a time on its device,
normalization and augmentation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, pad

from frugal.data import array_cleaning
from frugal.data.sampler import Part
from frugal.data.source import Split
from frugal.errors import DataError, SettingsError

CHUNK = 256  # samples: with this many, sums of squared bytes stay below 2**24 and are exact in float32


class Preprocess:
    """(x - mean) / std by the training split's statistics, then float32; while training, random draws before that.

    `normalize` False only brings bytes to 0..1 and leaves floats as they are. `per` says what shares a mean and a
    deviation: the whole `dataset`, a `channel` (dimension 1), or nothing but itself (`feature`: each pixel or column).
    `shift` moves each training image by up to so many pixels, whole ones, in both directions; zeros come in. `flip`
    mirrors each training image, left to right, with probability 1/2.

    `rotate`, `scale` and `shear` bend each training image by an affine map about its centre, each drawn evenly from
    minus to plus so much: degrees; a share of the size, for height and width apart; pixels to the side for each pixel
    up. Between pixels the result is linear, outside the image is zero. This is done before `shift`.

    `duplicates` drops training samples that are equal to an earlier one, target included. `broken` says what becomes of
    samples with NaN or infinity: refuse the data set, drop them, or keep them. `target` gives a regression's targets a
    mean and a deviation too, in `target_mean` and `target_std`, which are 0 and 1 otherwise.
    """

    __frugal_configurable__: ClassVar[bool] = True

    def __init__(
        self,
        normalize: bool = True,
        per: Literal["dataset", "channel", "feature"] = "dataset",
        shift: int = 0,
        flip: bool = False,
        duplicates: bool = False,
        broken: Literal["refuse", "drop", "keep"] = "refuse",
        target: bool = False,
        rotate: float = 0.0,
        scale: float = 0.0,
        shear: float = 0.0,
    ) -> None:
        if per not in ("dataset", "channel", "feature"):
            raise SettingsError(f"preprocess.per={per!r}: it is dataset, channel or feature")
        if shift < 0:
            raise SettingsError(f"preprocess.shift={shift}: it is 0 or more pixels")
        for key, value, most in (("rotate", rotate, 180), ("scale", scale, 0.9), ("shear", shear, 10)):
            if not 0 <= value <= most:
                raise SettingsError(f"preprocess.{key}={value}: it is from 0 to {most}")
        if broken not in ("refuse", "drop", "keep"):
            raise SettingsError(f"preprocess.broken={broken!r}: it is refuse, drop or keep")
        self.normalize, self.per, self.shift, self.flip = normalize, per, shift, flip
        self.duplicates, self.broken, self.target = duplicates, broken, target
        self.rotate, self.scale, self.shear = float(rotate), float(scale), float(shear)
        self.counts: dict[str, dict[str, int]] = {}  # split -> what was looked for -> samples
        self.mean: list[float] = []  # in the units of the stored samples; one a channel or feature where `per` says so
        self.std: list[float] = []
        self.target_mean, self.target_std = 0.0, 1.0
        self._has_state = False
        self._ready: dict[torch.device, tuple[float | Tensor, Tensor]] = {}

    @property
    def fitted(self) -> bool:
        return bool(self.mean) if self.normalize else self._has_state or not self.target

    @property
    def random(self) -> bool:
        """Whether training batches take random draws."""
        return self.shift > 0 or self.flip or self._bends

    @property
    def _bends(self) -> bool:
        return max(self.rotate, self.scale, self.shear) > 0

    def clean(self, splits: dict[str, Split], names: Sequence[str] | None = None) -> dict[str, Split]:
        """The splits without what is to be dropped; what was looked for is counted in `counts`, by split.

        `names` are a table's columns, for messages. Raises DataError for the first broken sample where `broken` is
        "refuse".
        """
        self.counts, kept = {}, {}
        for name, split in splits.items():
            found: dict[str, int] = {}
            mask = np.zeros(len(split), dtype=bool)
            if self.broken != "keep" and "f" in (split.x.dtype.kind, split.y.dtype.kind):  # bytes are always sound
                mask = array_cleaning.broken(split.x, split.y)
                if self.broken == "refuse" and mask.any():
                    row = int(mask.argmax())
                    where = array_cleaning.place(split.x, split.y, row, names)
                    raise DataError(
                        f"data.source: {name} split, row {row} (of {len(split)}, from 0): {where}; "
                        f"preprocess.broken=drop leaves such samples out ({mask.sum()} in this split)"
                    )
                found["broken"] = int(mask.sum())
            if self.duplicates and name == "train":
                copied = array_cleaning.copies(split.x, split.y) & ~mask
                found["duplicates"] = int(copied.sum())
                mask |= copied
            kept[name] = Split(split.x[~mask], split.y[~mask]) if mask.any() else split
            if found:
                self.counts[name] = found
        return kept

    def fit(self, x: Tensor, y: Tensor | None = None) -> None:
        """Take the statistics of training samples (N, ...) and, with `target`, of their targets (N,); population
        deviations. Bytes are summed exactly. Classes have no mean: of integers in `y` nothing is taken."""
        state: dict[str, Any] = self._statistics(x) if self.normalize else {"mean": [], "std": []}
        if self.target and y is not None and y.is_floating_point():
            values = y.numpy().astype(np.float64)
            state |= {"target_mean": values.mean(), "target_std": values.std()}
        self.load_state_dict(state)

    def _statistics(self, x: Tensor) -> dict[str, Any]:
        # numpy: hundreds of small sums on torch's threads took seconds on a machine with other load
        flat = x.flatten(1).numpy()
        exact = flat.dtype == np.uint8
        # floats are taken relative to the first sample: a large common offset would drown their variance
        origin = np.zeros(flat.shape[1]) if exact else flat[0].astype(np.float64)
        total, square = np.zeros_like(origin), np.zeros_like(origin)
        for begin in range(0, len(flat), CHUNK):
            chunk = flat[begin : begin + CHUNK]
            values = chunk.astype(np.float32) if exact else chunk - origin
            total += values.sum(0)
            square += np.square(values, out=values).sum(0)
        mean, variance = total / len(x) + origin, square / len(x) - np.square(total / len(x))
        groups = {"dataset": 1, "channel": x.shape[1], "feature": flat.shape[1]}[self.per]
        grouped = mean.reshape(groups, -1)
        # law of total variance: the mean within the features, and that of their means
        variance = variance.reshape(groups, -1).mean(1) + grouped.var(1)
        return {"mean": grouped.mean(1), "std": np.sqrt(variance.clip(min=0))}

    def __call__(
        self, x: Tensor, training: bool, generator: torch.Generator | None = None, part: Part | None = None
    ) -> Tensor:
        """Float32 of the shape of `x`. Draws come from `generator`, or from torch's own of the device; where `x` is a
        `part` of a batch, those that its samples would get in the whole."""
        part = part or Part(0, len(x), len(x))
        if training and self._bends:
            x = self._bent(x, generator, part)
        if training and self.shift:
            x = self._shifted(x, generator, part)
        if training and self.flip:
            x = self._flipped(x, generator, part)
        if not self.normalize:
            return x.float().mul_(1 / 255) if x.dtype == torch.uint8 else x.float()
        scale, offset = self._ready.get(x.device) or self._constants(x)
        if isinstance(scale, float):
            return torch.add(offset, x, alpha=scale)  # bytes to floats in the same pass
        return torch.mul(x, scale).float().add_(offset)  # never in place: floats may be the stored samples themselves

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"mean": list(self.mean), "std": list(self.std)}
        if self.target:
            state |= {"target_mean": self.target_mean, "target_std": self.target_std}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean, self.std = [float(v) for v in state["mean"]], [float(v) for v in state["std"]]
        self.target_mean, self.target_std = float(state.get("target_mean", 0)), float(state.get("target_std", 1))
        if not self.target_std > 1e-9 * abs(self.target_mean):
            self.target_std = 1.0  # what never varies in training is only centred
        self._has_state = True
        self._ready.clear()

    def _constants(self, x: Tensor) -> tuple[float | Tensor, Tensor]:
        """Scale and offset that broadcast against `x`. What never varies in training is only centred."""
        if not self.fitted:
            raise DataError("preprocess is not fitted: call fit with training samples, or load a state, before data")
        mean, std = np.array(self.mean), np.array(self.std)
        scale = 1 / np.where(std > 1e-9 * np.abs(mean), std, 1)
        shape = {"dataset": (), "channel": (-1, *[1] * (x.ndim - 2)), "feature": tuple(x.shape[1:])}[self.per]
        offset = torch.from_numpy(-mean * scale).float().reshape(shape).to(x.device)
        if self.per == "dataset":
            self._ready[x.device] = float(scale[0]), offset
        else:
            self._ready[x.device] = torch.from_numpy(scale).float().reshape(shape).to(x.device), offset
        return self._ready[x.device]

    def _bent(self, x: Tensor, generator: torch.Generator | None, part: Part) -> Tensor:
        """Each image (C, H, W) scaled, then sheared, then rotated about its centre; bytes stay bytes."""
        _check_images(x, f"preprocess.rotate={self.rotate}, scale={self.scale}, shear={self.shear} bend")
        n, _, height, width = x.shape
        draws = torch.rand(4, part.samples, device=x.device, generator=generator)[:, part.begin : part.end] * 2 - 1
        angle, shear = draws[0] * math.radians(self.rotate), draws[1] * self.shear
        across, down = 1 + draws[2] * self.scale, 1 + draws[3] * self.scale
        # `grid_sample` wants where each pixel comes from: the inverse, in halves of width and height
        cos, sin = angle.cos(), angle.sin()
        inverse = torch.zeros(n, 2, 3, device=x.device)
        inverse[:, 0, 0] = (cos + shear * sin) / across
        inverse[:, 0, 1] = (sin - shear * cos) / across * (height / width)
        inverse[:, 1, 0] = -sin / down * (width / height)
        inverse[:, 1, 1] = cos / down
        grid = affine_grid(inverse, list(x.shape), align_corners=False)
        bent = grid_sample(x.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        return bent if x.dtype.is_floating_point else bent.round_().to(x.dtype)

    def _shifted(self, x: Tensor, generator: torch.Generator | None, part: Part) -> Tensor:
        """Each image (C, H, W) at its own place in a frame of zeros."""
        _check_images(x, f"preprocess.shift={self.shift} moves")
        (n, _, height, width), reach = x.shape, self.shift
        places = pad(x, (reach,) * 4).unfold(2, height, 1).unfold(3, width, 1)  # (N, C, 2r+1, 2r+1, H, W), a view
        draws = torch.randint(0, 2 * reach + 1, (2, part.samples), device=x.device, generator=generator)
        down, right = draws[:, part.begin : part.end]
        return places[torch.arange(n, device=x.device), :, down, right]

    def _flipped(self, x: Tensor, generator: torch.Generator | None, part: Part) -> Tensor:
        """Half of the images (C, H, W), on average, mirrored left to right."""
        _check_images(x, "preprocess.flip=true mirrors")
        draws = torch.rand(part.samples, device=x.device, generator=generator)
        chosen = draws[part.begin : part.end] < 0.5
        return torch.where(chosen[:, None, None, None], x.flip(3), x)


def _check_images(x: Tensor, what: str) -> None:
    if x.ndim != 4:
        raise SettingsError(f"{what} images (N, C, H, W), and these samples are {x.ndim - 1}-d")
