"""A run's artefact as an MLflow model: `mlflow.pyfunc.load_model("models:/m-...").predict(x)`.

MLflow keeps the artefact as it is, beside a description that names this module to load it: no pickle is involved.
Inputs are samples as the data set stores them, as float32 (a byte is 0 to 255), or tokens; outputs are the network's
own (logits), or a regression's predictions in the target's units. With `preprocess.normalize=false` nothing is done to
the inputs: bytes are to be brought to 0..1 before.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

import frugal
from frugal import artefact, settings
from frugal.artefact import Description
from frugal.data.preprocess import Preprocess

BATCH = 256
TEXT = ("text_classification", "language_modeling")


class Predictor:
    """What MLflow calls: an array in, an array out."""

    def __init__(self, network: nn.Module, description: Description) -> None:
        self.network, self.description = network, description
        self.dtype = artefact.floating_dtype(network.parameters()) or torch.float32
        self.preprocess: Preprocess | None = None
        if description.task not in TEXT:
            preprocess = settings.instantiate(description.preprocess, "preprocess")
            assert isinstance(preprocess, Preprocess)
            preprocess.load_state_dict(description.state["preprocess"])
            self.preprocess = preprocess

    @torch.inference_mode()
    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        x = torch.as_tensor(model_input)
        outputs = torch.cat([self._outputs(part) for part in x.split(BATCH)])
        if self.description.task == "regression":
            state = self.description.state["preprocess"]
            outputs = outputs * state.get("target_std", 1.0) + state.get("target_mean", 0.0)
        return outputs.numpy()

    def _outputs(self, x: torch.Tensor) -> torch.Tensor:
        x = x.long() if self.preprocess is None else self.preprocess(x, training=False).to(self.dtype)
        return self.network(x).float()


def _load_pyfunc(path: str) -> Predictor:
    """The name that MLflow looks for. Raises RunError for what is no artefact."""
    return Predictor(*artefact.load(Path(path)))


def signature(description: Description) -> Any:
    """What goes in and what comes out, as MLflow says it; the first dimension is the batch's."""
    import numpy as np
    from mlflow.models.signature import ModelSignature
    from mlflow.types import Schema, TensorSpec

    dims = description.dims
    outputs = {
        "classification": [-1, dims.get("classes", -1)],
        "text_classification": [-1, dims.get("classes", -1)],
        "language_modeling": [-1, -1, dims.get("vocabulary", -1)],
        "regression": [-1, dims.get("outputs", 1)],
    }[description.task]
    text = description.task in TEXT
    inputs = [-1, -1] if text else [-1, *dims["input_shape"]]
    return ModelSignature(
        inputs=Schema([TensorSpec(np.dtype("int64" if text else "float32"), inputs)]),
        outputs=Schema([TensorSpec(np.dtype("float32"), outputs)]),
    )


def save(path: Path, folder: Path, run_id: str, model_id: str) -> None:
    """Write the artefact `path` as an MLflow model into `folder`, which must not be there yet."""
    import mlflow.pyfunc
    from mlflow.models import Model

    description = Description.from_dict(artefact.read(path)[1], path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it would like an input example, to guess the signature from
        mlflow.pyfunc.save_model(
            str(folder),
            loader_module=__name__,
            data_path=str(path),
            mlflow_model=Model(run_id=run_id, model_id=model_id, artifact_path="model"),
            signature=signature(description),
            pip_requirements=[f"frugal-ml=={frugal.__version__}"],
        )
