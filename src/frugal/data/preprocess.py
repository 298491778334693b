"""From stored samples to a network's inputs, a batch at a time on its device: normalization and augmentation."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from frugal.errors import DataError, SettingsError

CHUNK = 256  # samples: with this many, sums of squared bytes stay below 2**24 and are exact in float32


class Preprocess:
    """(x - mean) / std by the training split's statistics, then float32; while training, random shifts before that.

    `normalize` False only brings bytes to 0..1 and leaves floats as they are. `per` says what shares a mean and a
    deviation: the whole `dataset`, a `channel` (dimension 1), or nothing but itself (`feature`: each pixel or column).
    `shift` moves each training image by up to so many pixels, whole ones, in both directions; zeros come in.
    """

    __frugal_configurable__: ClassVar[bool] = True

    def __init__(
        self, normalize: bool = True, per: Literal["dataset", "channel", "feature"] = "dataset", shift: int = 0
    ) -> None:
        if per not in ("dataset", "channel", "feature"):
            raise SettingsError(f"preprocess.per={per!r}: it is dataset, channel or feature")
        if shift < 0:
            raise SettingsError(f"preprocess.shift={shift}: it is 0 or more pixels")
        self.normalize, self.per, self.shift = normalize, per, shift
        self.mean: list[float] = []  # in the units of the stored samples; one a channel or feature where `per` says so
        self.std: list[float] = []
        self._ready: dict[torch.device, tuple[float | Tensor, Tensor]] = {}

    @property
    def fitted(self) -> bool:
        return not self.normalize or bool(self.mean)

    @property
    def random(self) -> bool:
        """Whether training batches take random draws."""
        return self.shift > 0

    def fit(self, x: Tensor) -> None:
        """Take the statistics of training samples (N, ...); population deviations. Bytes are summed exactly."""
        if not self.normalize:
            return
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
        self.load_state_dict({"mean": grouped.mean(1), "std": np.sqrt(variance.clip(min=0))})

    def __call__(self, x: Tensor, training: bool, generator: torch.Generator | None = None) -> Tensor:
        """Float32 of the shape of `x`. Draws come from `generator`, or from torch's own of the device."""
        if training and self.shift:
            x = self._shifted(x, generator)
        if not self.normalize:
            return x.float().mul_(1 / 255) if x.dtype == torch.uint8 else x.float()
        scale, offset = self._ready.get(x.device) or self._constants(x)
        if isinstance(scale, float):
            return torch.add(offset, x, alpha=scale)  # bytes to floats in the same pass
        return x.float().mul_(scale).add_(offset)

    def state_dict(self) -> dict[str, list[float]]:
        return {"mean": list(self.mean), "std": list(self.std)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean, self.std = [float(v) for v in state["mean"]], [float(v) for v in state["std"]]
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

    def _shifted(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Each image (C, H, W) at its own place in a frame of zeros."""
        if x.ndim != 4:
            raise SettingsError(
                f"preprocess.shift={self.shift} moves images (N, C, H, W), and these are {x.ndim - 1}-d"
            )
        (n, _, height, width), reach = x.shape, self.shift
        places = pad(x, (reach,) * 4).unfold(2, height, 1).unfold(3, width, 1)  # (N, C, 2r+1, 2r+1, H, W), a view
        down, right = torch.randint(0, 2 * reach + 1, (2, n), device=x.device, generator=generator)
        return places[torch.arange(n, device=x.device), :, down, right]
