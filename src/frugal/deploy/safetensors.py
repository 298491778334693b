"""`deploy=safetensors`: the weights as floats, as they act, for any program that reads safetensors."""

from __future__ import annotations

import copy

from safetensors.torch import load, save
from torch import Tensor, nn

from frugal.deploy.base import Deployment, FileNetwork
from frugal.errors import SettingsError


class Safetensors(Deployment):
    """Where `deploy=none` writes a quantized weight as whole numbers and a scale, this writes what they stand for."""

    format = "safetensors"

    def convert(self, network: nn.Module, example: Tensor) -> nn.Module:
        if isinstance(network, FileNetwork):
            raise SettingsError(
                "deploy=safetensors: the network is an ONNX file already, which quantization made of it; choose "
                "deploy=onnx or another quantization"
            )
        network.frugal_encodings = {}  # type: ignore[assignment]
        read = copy.deepcopy(network)
        read.load_state_dict(load(save({name: tensor.clone() for name, tensor in network.state_dict().items()})))
        return read
