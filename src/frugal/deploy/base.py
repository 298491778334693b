"""What the options of `deploy=` share: a network that lies in a file of its own runtime, and a technique that writes
such a file and compares what it says with what the network says."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frugal.errors import RunError, SettingsError
from frugal.technique import Technique

KEY = "frugal"  # under which such a file describes itself
# The largest difference of outputs, as a share of the largest output: some hundred roundings of the dtype.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10, torch.float16: 2e-2, torch.bfloat16: 1e-1}
COMPARED = 64  # samples


class FileNetwork(nn.Module, ABC):
    """(B, ...) -> the file's output, computed on the CPU whatever the input's device; it has no parameters.

    A file for tokens takes texts of one length: shorter ones are padded with 0 at their end, which changes nothing for
    a classifier, to which 0 is padding, nor for a causal model, whose logits there are cut off.
    """

    suffix: ClassVar[str]
    frugal_shapes: Any  # as of a network that structured pruning made smaller

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.content = content
        self.length: int | None = None  # of a text, where the file takes tokens
        self.frugal_shapes = {}

    @property
    @abstractmethod
    def backend(self) -> str:
        """What latency rows call it."""

    @property
    def converted(self) -> bool:
        """Whether it computes with smaller numbers."""
        return False

    @abstractmethod
    def run(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def plain_weights(self) -> dict[str, Tensor]:
        """The stored weights by name, as they are stored."""

    @abstractmethod
    def described(self, text: str) -> bytes:
        """The file with this description of itself; its bytes follow from network and text alone."""

    @abstractmethod
    def description(self) -> str | None:
        """What the file says of itself."""

    def __call__(self, x: Tensor) -> Tensor:
        # looking for hooks of all kinds takes a tenth of a small network's time
        return super().__call__(x) if self._forward_hooks or self._forward_pre_hooks else self.forward(x)

    def forward(self, x: Tensor) -> Tensor:
        if self.length is None or x.shape[1] == self.length:
            return self.run(x)
        given = x.shape[1]
        if given > self.length:
            raise SettingsError(
                f"{given} tokens, but the file takes {self.length}; set data.block_size or data.max_length to that"
            )
        found = self.run(F.pad(x, (0, self.length - given)))
        return found[:, :given] if found.ndim == 3 else found


class Deployment(Technique):
    """Base: writes the network, as all techniques left it, in one format. `compared` samples of the training set are
    given to both, at a batch size that the export did not see and at one; a difference is an error."""

    format: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self._figures: dict[str, Any] = {}

    @abstractmethod
    def convert(self, network: nn.Module, example: Tensor) -> nn.Module:
        """The network as it would be read back from its file; `example` is an input (2, ...)."""

    def finalize(self, network: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
        """Raises SettingsError where the network cannot be written, RunError where the file says something else."""
        batch = next(iter(batches), None)
        if batch is None:
            raise SettingsError(f"deploy={self.format}: needs training inputs to compare with, and there are none")
        network = network.cpu().eval()
        dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
        batch = batch[:COMPARED].to(dtype) if batch.is_floating_point() else batch[:COMPARED]
        try:
            written = self.convert(network, two_of(batch))
        except (SettingsError, RunError):
            raise
        except Exception as error:  # exporters raise whatever they like
            said = (str(error).strip().splitlines() or [""])[0][:200]
            raise SettingsError(
                f"deploy={self.format}: {type(network).__name__} cannot be exported ({type(error).__name__}: {said}); "
                "choose deploy=none"
            ) from None
        if isinstance(written, FileNetwork):
            written.frugal_shapes = getattr(network, "frugal_shapes", {})
            self._figures["backend"] = written.backend
        self._figures |= self._compare(network, written, batch)
        return written

    def figures(self) -> dict[str, Any]:
        return {"format": self.format, **self._figures}

    @torch.no_grad()
    def _compare(self, network: nn.Module, written: nn.Module, batch: Tensor) -> dict[str, Any]:
        difference, largest = 0.0, 0.0
        for part in (batch, batch[:1]):
            expected, found = network(part), written(part)
            if expected.shape != found.shape:
                raise RunError(
                    f"deploy={self.format}: the file gives outputs of shape {tuple(found.shape)}, "
                    f"the network {tuple(expected.shape)}"
                )
            same = (expected == found) | (expected.isnan() & found.isnan())  # of a training that diverged
            apart = (expected.double() - found.double()).abs().masked_fill(same, 0.0)
            difference = float(torch.cat([apart.flatten(), torch.tensor([difference]).double()]).max())  # NaN stays
            largest = max(largest, float(expected.abs().max()))
        tolerance = TOLERANCE.get(expected.dtype, 1e-4)
        if not difference <= tolerance * max(largest, 1.0):  # or NaN
            raise RunError(
                f"deploy={self.format}: the file's outputs differ by {difference:.2g} where the network's are up to "
                f"{largest:.2g}; {tolerance:g} of that is allowed, choose deploy=none"
            )
        return {"largest_difference": difference, "largest_output": largest, "compared": len(batch)}


def two_of(batch: Tensor) -> Tensor:
    """An input of two samples: an exporter takes a batch of one for a constant."""
    example = batch[:2] if len(batch) > 1 else batch.expand(2, *batch.shape[1:])
    return example.contiguous()
