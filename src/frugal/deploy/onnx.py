"""`deploy=onnx`: the network as an ONNX file with any batch size, run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from frugal.deploy.base import Deployment
from frugal.deploy.onnx_network import OnnxNetwork, described, export


class Onnx(Deployment):
    """A network that `static_int8` or `dynamic_int8` has made one already stays as it is, and is not compared again:
    its outputs are rounded by intent."""

    format = "onnx"

    def finalize(self, network: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
        return network if isinstance(network, OnnxNetwork) else super().finalize(network, batches)

    def convert(self, network: nn.Module, example: Tensor) -> nn.Module:
        return OnnxNetwork(described(export(network, example), ""))
