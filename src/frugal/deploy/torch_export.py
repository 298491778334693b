"""`deploy=torch_export`: the network as a `.pt2` file of torch.export with any batch size."""

from __future__ import annotations

from torch import Tensor, nn

from frugal.deploy.base import Deployment, FileNetwork
from frugal.deploy.exported_network import ExportedNetwork, export
from frugal.errors import SettingsError


class TorchExport(Deployment):
    """Weights are written as floats, as they act. The bytes hold no time, path or input, but follow from torch's
    version as well: it writes its own schema."""

    format = "torch_export"

    def convert(self, network: nn.Module, example: Tensor) -> nn.Module:
        if isinstance(network, FileNetwork):
            raise SettingsError(
                "deploy=torch_export: the network is an ONNX file already, which quantization made of it; choose "
                "deploy=onnx or another quantization"
            )
        return ExportedNetwork(export(network, example))
