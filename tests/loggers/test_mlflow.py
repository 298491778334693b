"""`logger=mlflow`: what its folder holds, across resumes too, and that nothing MLflow does ends or holds up a run."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from torch import nn

from frugal import artefact
from frugal.artefact import Description
from frugal.errors import FrugalError
from frugal.loggers import mlflow as subject
from frugal.loggers.mlflow import MLflow
from frugal.loggers.mlflow_model import Predictor, signature

pytestmark = pytest.mark.mlflow
RECORD = {
    "schema": 1,
    "status": "completed",
    "quality": {"test/accuracy": 0.75},
    "run": {"name": "simple_net", "resumed_at_step": [4], "git_dirty": True},
}
PLAIN = {"_target_": "frugal.data.preprocess.Preprocess"}


@pytest.fixture(autouse=True)
def _as_a_user_has_it(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("MLFLOW_TRACKING_URI", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield


def made(tmp_path: Path, job: str = "one", **arguments: Any) -> MLflow:
    (tmp_path / job).mkdir(exist_ok=True)
    arguments = {"id": f"id-{job}", "name": job, "store": str(tmp_path / "mlruns"), **arguments}
    return MLflow(str(tmp_path / job), experiment="lab", **arguments)


def client(tmp_path: Path) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient((tmp_path / "mlruns").as_uri())


def runs(tmp_path: Path, words: str = "") -> list[Any]:
    (lab,) = [e for e in client(tmp_path).search_experiments() if e.name == "lab"]
    return client(tmp_path).search_runs([lab.experiment_id], words)


def history(tmp_path: Path, run: Any, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client(tmp_path).get_metric_history(run.info.run_id, name)]


def describe(task: str = "classification", **state: Any) -> Description:
    """Of a network that maps 1x2x2 images to three classes, or to one number."""
    net = {"_target_": "frugal.models.simple_net.SimpleNet", "hidden": [4]}
    dims = {"input_shape": [1, 2, 2], **({"classes": 3} if task == "classification" else {"outputs": 1})}
    model = {"_target_": "frugal.models.classifier.Classifier", "network": net}
    return Description(model, dims, task, PLAIN, {}, {}, {"preprocess": {"mean": [2.0], "std": [4.0], **state}})


def test_the_folder_holds_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = made(tmp_path, group="default/sweep", tags=["a", "b"])
    logger.log_hyperparams({"optim": {"lr": 0.1, "_target_": "x"}, "choices": {"optim": "sgd"}, "seed": None})
    assert not (tmp_path / "mlruns").exists(), "nothing is begun before the first metric"
    for step in range(3):
        logger.log_metrics({"train/loss_step": 1 / (step + 1), "lr": 0.5, "lr/1": 0.25, "odd, name": 1}, step=step)
    logger.log_record(RECORD)
    logger.close()
    (run,) = runs(tmp_path)
    assert run.info.status == "FINISHED" and run.info.run_name == "one"
    assert run.data.params == {"optim": "sgd", "optim.lr": "0.1", "seed": "null"}
    assert history(tmp_path, run, "train/loss_step") == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert history(tmp_path, run, "lr.1") == [(0, 0.25), (1, 0.25), (2, 0.25)], "a file lr leaves no folder lr"
    assert history(tmp_path, run, "odd_ name") == [(0, 1.0), (1, 1.0), (2, 1.0)]
    assert history(tmp_path, run, "test/accuracy") == [(3, 0.75)]
    tags = run.data.tags
    assert (tags["group"], tags["tags"], tags["status"]) == ("default/sweep", "a, b", "completed")
    assert (tags["run/name"], tags["run/resumed_at_step"], tags["run/git_dirty"]) == ("simple_net", "[4]", "true")
    (file,) = (tmp_path / "mlruns").rglob("frugal_record.json")
    assert json.loads(file.read_text()) == RECORD
    assert capsys.readouterr().out == ""


def test_the_network_is_there_with_its_signature(tmp_path: Path) -> None:
    import mlflow

    description = describe()
    network = artefact.build_network(description)
    artefact.write(network, description, tmp_path / "model.safetensors")
    logger = made(tmp_path)
    logger.log_metrics({"loss": 1.0}, step=9)
    logger.log_artifact(tmp_path / "model.safetensors")
    logger.close()
    (run,) = runs(tmp_path)
    (output,) = run.outputs.model_outputs
    assert output.step == 10
    folder = client(tmp_path).get_logged_model(output.model_id).artifact_location
    model = mlflow.pyfunc.load_model(folder)
    (given,), (got,) = model.metadata.signature.inputs.inputs, model.metadata.signature.outputs.inputs
    assert (given.type, given.shape, got.type, got.shape) == ("float32", (-1, 1, 2, 2), "float32", (-1, 3))
    x = np.arange(8, dtype=np.float32).reshape(2, 1, 2, 2)
    with torch.no_grad():
        expected = network((torch.from_numpy(x) - 2) / 4)
    assert model.predict(x) == pytest.approx(expected.numpy(), abs=1e-6)
    with pytest.raises(mlflow.exceptions.MlflowException, match="does not match expected shape"):
        model.predict(x.reshape(2, 4))


def test_a_regression_answers_in_the_units_of_its_target() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 1))
    nn.init.zeros_(network[1].weight)
    nn.init.constant_(network[1].bias, 0.5)
    description = describe("regression", target_mean=100.0, target_std=20.0)
    answer = Predictor(network, description).predict(np.zeros((300, 1, 2, 2), np.float32))
    assert answer.shape == (300, 1) and set(answer.ravel()) == {110.0}
    assert [spec.shape for spec in signature(description).outputs.inputs] == [(-1, 1)]


def test_tokens_go_in_as_they_are() -> None:
    dims = {"vocabulary": 7, "block_size": 4}
    description = Description({}, dims, "language_modeling", {}, {}, {}, {"preprocess": {}, "tokenizer": {}})
    answer = Predictor(nn.Embedding(7, 7), description).predict(np.zeros((2, 3), np.int64))
    assert answer.shape == (2, 3, 7)
    spec = signature(description)
    assert [(s.type, s.shape) for s in (*spec.inputs.inputs, *spec.outputs.inputs)] == [
        ("int64", (-1, -1)),
        ("float32", (-1, -1, 7)),
    ]


def test_a_resumed_run_goes_on_in_its_own_and_no_step_is_there_twice(tmp_path: Path) -> None:
    def part(steps: range, epochs: int, accuracy: float | None = None, resume_at: int | None = None) -> None:
        logger = made(tmp_path)
        logger.log_hyperparams({"trainer": {"max_epochs": epochs}, "seed": 0})
        if resume_at is not None:
            logger.resume_at(resume_at)
        for step in steps:
            logger.log_metrics({"loss": 1 / (step + 1), "test/accuracy": -1}, step=step)
        if accuracy is not None:
            logger.log_record({"status": "completed", "quality": {"test/accuracy": accuracy}})
        logger.close()

    part(range(7), epochs=1)
    (run,) = runs(tmp_path)
    assert run.info.status == "FAILED", "it left no record"
    part(range(4, 10), epochs=1, accuracy=0.5, resume_at=4)
    part(range(10, 12), epochs=2, accuracy=0.75, resume_at=10)
    (run,) = runs(tmp_path)
    assert run.info.status == "FINISHED"
    assert history(tmp_path, run, "loss") == [(step, 1 / (step + 1)) for step in range(12)]
    # the first record's figure at step 10 keeps none of the second part's from its place
    assert history(tmp_path, run, "test/accuracy")[-4:] == [(10, 0.5), (10, -1), (11, -1), (12, 0.75)]
    assert run.data.metrics["test/accuracy"] == 0.75
    assert run.data.params == {"trainer.max_epochs": "1", "seed": "0"}, "MLflow changes no param"
    assert run.data.tags["trainer.max_epochs"] == "2"


def test_a_folder_that_was_begun_anew_is_another_run(tmp_path: Path) -> None:
    for id in ("first", "second"):
        logger = made(tmp_path, id=id)
        logger.resume_at(1)
        logger.log_metrics({"loss": 1.0}, step=1)
        logger.close()
    assert len(runs(tmp_path)) == 2


def test_jobs_that_begin_together_share_one_experiment_and_are_found_by_their_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    def slowly(self: Any, name: str, create: Any = MlflowClient.create_experiment) -> str:
        time.sleep(0.1)  # for the others to look for it, too
        return create(self, name)

    monkeypatch.setattr(MlflowClient, "create_experiment", slowly)

    def job(number: int) -> None:
        logger = made(tmp_path, f"job{number}", group=f"default/sweep{number % 2}")
        logger.log_metrics({"loss": 1.0}, step=0)
        logger.log_record(RECORD)
        logger.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(job, range(4)))
    assert len(runs(tmp_path)) == 4
    found = runs(tmp_path, "tags.`group` = 'default/sweep1'")
    assert sorted(run.info.run_name for run in found) == ["job1", "job3"]


class Handler(BaseHTTPRequestHandler):
    """As much of MLflow's server as a run needs; artifacts go to a folder that it names."""

    asked: dict[str, list[Any]]
    folder: Path

    def log_message(self, *_: Any) -> None:
        """Tests print nothing."""

    def do_POST(self) -> None:
        call = urlsplit(self.path).path.split("/mlflow/")[1]
        body = json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)) or "{}")
        self.asked.setdefault(call, []).append(body)
        info = {"run_id": "a" * 32, "experiment_id": "7", "artifact_uri": (self.folder / "run").as_uri()}
        model = {"info": {"model_id": "m-1", "experiment_id": "7", "artifact_uri": (self.folder / "model").as_uri()}}
        answers = {
            "experiments/create": {"experiment_id": "7"},
            "runs/create": {"run": {"info": info, "data": {}}},
            "runs/get": {"run": {"info": info, "data": {}}},
            "logged-models": {"model": model},
            "logged-models/m-1": {"model": model},
        }
        missing = call == "experiments/get-by-name"
        answer = {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no"} if missing else answers.get(call, {})
        text = json.dumps(answer).encode()
        self.send_response(404 if missing else 200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_PATCH = do_POST


def test_a_server_is_told_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    description = describe()
    artefact.write(artefact.build_network(description), description, tmp_path / "model.safetensors")
    handler = type("Own", (Handler,), {"asked": {}, "folder": tmp_path / "server"})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_address[1]}"
        logger = made(tmp_path, tracking_uri=uri)
        logger.log_hyperparams({"optim": {"lr": 0.1}})
        for step in range(50):
            logger.log_metrics({"loss": step}, step=step)
        logger.log_record(RECORD)
        logger.log_artifact(tmp_path / "model.safetensors")
        logger.close()
        server.shutdown()
    asked = handler.asked  # type: ignore[attr-defined]
    batches = asked["runs/log-batch"]
    assert [p for batch in batches for p in batch.get("params", [])] == [{"key": "optim.lr", "value": "0.1"}]
    points = [point for batch in batches for point in batch.get("metrics", [])]
    assert [(p["key"], p["value"]) for p in points] == [("loss", float(i)) for i in range(50)] + [
        ("test/accuracy", 0.75)
    ]
    assert asked["runs/update"][-1]["status"] == "FINISHED"
    assert asked["runs/outputs"][0]["models"][0]["model_id"] == "m-1"
    assert (tmp_path / "server" / "model" / "MLmodel").is_file()
    assert json.loads((tmp_path / "server" / "run" / "frugal_record.json").read_text()) == RECORD
    assert capsys.readouterr().out == f"MLflow: {uri}/#/experiments/7/runs/{'a' * 32}\n"
    assert not (tmp_path / "mlruns").exists()


def test_no_network_is_one_line_and_the_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = made(tmp_path, tracking_uri="http://127.0.0.1:9")  # nobody listens there
    logger.log_metrics({"loss": 1.0}, step=0)
    logger.log_record(RECORD)
    logger.log_artifact(tmp_path / "no-such-file.safetensors")
    logger.close()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("MLflow: the run cannot be started (") and line.endswith("goes on without MLflow")


def test_a_server_that_never_answers_holds_up_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(subject, "FINISH_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        logger = made(tmp_path, tracking_uri=f"http://127.0.0.1:{server.getsockname()[1]}")
        begin = time.monotonic()
        for step in range(100):
            logger.log_metrics({"loss": 1.0}, step=step)
        assert time.monotonic() - begin < 0.2
        logger.log_record(RECORD)
        logger.close()
        assert time.monotonic() - begin < 5
    assert "no answer for" in capsys.readouterr().out


def test_what_mlflow_raises_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = made(tmp_path)
    logger.log_metrics({"loss": 1.0}, step=0)
    logger.log_artifact(tmp_path / "no-such-file.safetensors")
    logger.log_metrics({"loss": 1.0}, step=1)
    logger.close()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("MLflow: no-such-file.safetensors cannot be logged (")


def test_missing_mlflow_is_one_line_with_its_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(FrugalError, match=r'pip install "frugal-ml\[mlflow\]"'):
        MLflow(str(tmp_path))
