"""`logger=wandb`: what arrives offline and online, and that nothing W&B does ends or holds up a run.

Online tests talk to a small server on this machine.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from offline_wandb import items, offline_records

from frugal.errors import FrugalError
from frugal.loggers import wandb as subject
from frugal.loggers.csv import CSVMetrics
from frugal.loggers.wandb import WandB

pytestmark = pytest.mark.wandb
RECORD = {"schema": 1, "status": "completed", "quality": {"test/accuracy": 0.75}, "throughput": {"samples_per_s": 9.0}}


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test finds W&B as a new process would, and as a user has it: no mode set."""
    monkeypatch.setattr(subject, "_unreachable", False)
    monkeypatch.delenv("WANDB_MODE")
    yield
    wandb = sys.modules.get("wandb")
    if wandb is not None:
        wandb.teardown(exit_code=0)


def log_a_run(logger: WandB) -> None:
    logger.log_hyperparams({"optim": {"lr": 0.1}, "seed": 0})
    for step in range(3):
        logger.log_metrics({"train/loss_step": 1.0 / (step + 1)}, step=step)
    logger.log_record(RECORD)


def test_offline_run_holds_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = WandB(str(tmp_path), project="p", name="simple_net", group="sweep-1", tags=["a"], id="job-1")
    assert not list(tmp_path.iterdir()), "nothing is begun before the first metric"
    log_a_run(logger)
    artefact = tmp_path / "network.safetensors"
    artefact.write_bytes(b"weights")
    logger.log_artifact(artefact)
    logger.close()

    records = offline_records(tmp_path)
    (run,) = [r.run for r in records if r.WhichOneof("record_type") == "run"]
    assert (run.run_id, run.project, run.display_name, run.run_group, list(run.tags)) == (
        "job-1",
        "p",
        "simple_net",
        "sweep-1",
        ["a"],
    )
    configs = [items(r.config.update) for r in records if r.WhichOneof("record_type") == "config"]
    assert {"lr": 0.1} in [config.get("optim") for config in configs]
    history = [items(r.history.item) for r in records if r.WhichOneof("record_type") == "history"]
    rows = [(row["trainer/global_step"], row["train/loss_step"]) for row in history]
    assert rows == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    summary: dict[str, Any] = {}
    for record in records:
        if record.WhichOneof("record_type") == "summary":
            summary |= items(record.summary.update)
    assert summary["test/accuracy"] == 0.75
    assert summary["throughput/samples_per_s"] == 9.0
    artifacts = [r.artifact for r in records if r.WhichOneof("record_type") == "artifact"]
    artifacts += [
        r.request.log_artifact.artifact for r in records if r.request.WhichOneof("request_type") == "log_artifact"
    ]
    assert [(a.type, a.name) for a in artifacts] == [("model", "network-job-1")]
    assert [r.exit.exit_code for r in records if r.WhichOneof("record_type") == "exit"] == [0]
    assert "wandb sync" in capsys.readouterr().out


def test_a_failed_run_ends_as_failed(tmp_path: Path) -> None:
    logger = WandB(str(tmp_path), id="job")
    logger.log_metrics({"loss": 1.0}, step=0)
    logger.close()  # without a record: something broke, in the fit or after it
    assert [r.exit.exit_code for r in offline_records(tmp_path) if r.WhichOneof("record_type") == "exit"] == [1]


def test_each_job_is_a_run_of_its_own(tmp_path: Path) -> None:
    for job in ("one", "two"):
        logger = WandB(str(tmp_path / job), id=job)
        logger.log_metrics({"loss": 1.0}, step=0)
        logger.close()
    for job in ("one", "two"):
        (run,) = [r.run for r in offline_records(tmp_path / job) if r.WhichOneof("record_type") == "run"]
        assert run.run_id == job


def test_fit_and_test_are_one_run(tmp_path: Path) -> None:
    logger = WandB(str(tmp_path), id="job")
    logger.log_metrics({"train/loss": 1.0}, step=9)
    logger.finalize("success")  # as Lightning does after each
    logger.log_metrics({"test/loss": 2.0}, step=0)
    logger.finalize("success")
    logger.close()
    history = [items(r.history.item) for r in offline_records(tmp_path) if r.WhichOneof("record_type") == "history"]
    assert [(row.get("train/loss"), row.get("test/loss")) for row in history] == [(1.0, None), (None, 2.0)]


def test_what_wandb_raises_is_one_line_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import wandb

    def fails(**_: Any) -> Any:
        raise wandb.errors.CommError("first line\nsecond line")

    monkeypatch.setattr(wandb, "init", fails)
    logger = WandB(str(tmp_path), id="job")
    log_a_run(logger)
    logger.log_artifact(tmp_path / "network.safetensors")
    logger.close()
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["W&B: cannot be started (first line second line); the run goes on without W&B"]


def test_an_artefact_that_is_not_there_ends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = WandB(str(tmp_path), id="job")
    logger.log_metrics({"loss": 1.0}, step=0)
    logger.log_artifact(tmp_path / "no-such-file.safetensors")
    logger.close()
    assert "no-such-file.safetensors cannot be logged" in capsys.readouterr().out


def test_without_a_key_online_goes_offline_and_asks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("W&B asked for a key"))
    monkeypatch.setattr("getpass.getpass", lambda *_, **__: pytest.fail("W&B asked for a key"))
    logger = WandB(str(tmp_path), id="job", mode="online")
    logger.log_metrics({"loss": 1.0}, step=0)
    logger.close()
    assert "no key was found" in capsys.readouterr().out
    assert offline_records(tmp_path)


def test_disabled_writes_nothing(tmp_path: Path) -> None:
    logger = WandB(str(tmp_path), id="job", mode="disabled")
    log_a_run(logger)
    logger.close()
    assert not list(tmp_path.rglob("*.wandb"))


def test_missing_wandb_is_one_line_with_its_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(FrugalError, match=r'pip install "frugal-ml\[wandb\]"'):
        WandB(str(tmp_path))


def with_server(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_no_network_is_found_out_once_and_kept_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_server(monkeypatch, port=9)  # nobody listens there
    for job in ("one", "two"):
        logger = WandB(str(tmp_path / job), id=job)
        logger.log_metrics({"loss": 1.0}, step=0)
        logger.close()
        assert offline_records(tmp_path / job)
    assert capsys.readouterr().out.count("no connection") == 1


class Server(ThreadingHTTPServer):
    """As much of W&B's server as a run needs; a method in `silent` never gets an answer."""

    daemon_threads = True

    def __init__(self, silent: tuple[str, ...] = ()) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.silent = silent
        self.asked: list[tuple[str, str]] = []
        self.earlier: dict[str, Any] | None = None  # the summary of a run that is there already
        self.closing = threading.Event()
        self.variables: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.history: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle is no news."""

    def stop(self) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: Any) -> None:
        """Tests print nothing."""

    def do_POST(self) -> None:
        self.server.asked.append((self.command, self.path))
        if self.command in self.server.silent:
            self.server.closing.wait(120)
            return
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        answer: dict[str, Any] = {}
        if self.path == "/graphql":
            body = json.loads(raw)
            answer = {"data": self.answer(body.get("operationName"), body.get("variables") or {})}
        else:
            self.server.files[self.path] = raw
            if self.path.endswith("/file_stream"):
                self.server.history += (
                    json.loads(raw).get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
                )
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_PUT = do_GET = do_POST

    def earlier_run(self, variables: dict[str, Any]) -> dict[str, Any] | None:
        if self.server.earlier is None:
            return None
        return {
            "id": "x",
            "name": variables.get("name"),
            "summaryMetrics": json.dumps(self.server.earlier),
            "displayName": "n",
            "logLineCount": 0,
            "historyLineCount": 4,
            "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps({"_step": 3, "_runtime": 1})]),
            "eventsTail": "[]",
            "config": "{}",
            "tags": [],
            "wandbConfig": '{"t": 1}',
        }

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        self.server.variables[operation] = variables
        project = {"id": "p", "name": "frugal", "entity": {"id": "e", "name": "me"}}
        if operation == "Viewer":
            return {"viewer": {"id": "v", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        if operation == "RunResumeStatus":
            return {"model": {**project, "bucket": self.earlier_run(variables)}}
        if operation == "UpsertBucket":
            bucket = {"id": "x", "name": variables.get("name"), "displayName": "n", "config": "{}", "project": project}
            return {"upsertBucket": {"bucket": {**bucket, "historyLineCount": 0}, "inserted": True}}
        if operation == "CreateRunFiles":
            url = f"http://127.0.0.1:{self.server.server_address[1]}/upload"
            files = [{"name": name, "uploadUrl": f"{url}/{name}"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "x", "uploadHeaders": [], "files": files}}
        return {}


@pytest.fixture
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    started = Server(silent=getattr(request, "param", ()))
    with_server(monkeypatch, started.server_address[1])
    yield started
    if not started.closing.is_set():
        started.stop()


def test_with_a_key_the_run_goes_online(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = WandB(str(tmp_path), id="job-1", group="sweep-1")
    log_a_run(logger)
    logger.close()
    assert server.variables["UpsertBucket"]["name"] == "job-1"
    assert "RunResumeStatus" in server.variables, "a run of that id would have been continued"
    summary = json.loads(server.files["/upload/wandb-summary.json"])
    assert summary["test/accuracy"] == 0.75
    assert "/runs/job-1" in capsys.readouterr().out
    assert not list(tmp_path.glob("wandb/offline-run-*"))


@pytest.mark.parametrize("server", [("GET", "POST")], indirect=True)
def test_a_server_that_never_answers_is_asked_once_and_kept_offline(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(subject, "CONNECT_TIMEOUT_S", 0.3)
    monkeypatch.delenv("WANDB_SILENT")  # as a user has it
    begin = time.monotonic()
    for job in ("one", "two"):
        logger = WandB(str(tmp_path / job), id=job)
        log_a_run(logger)
        logger.close()
    assert server.asked == [("GET", "/")] and time.monotonic() - begin < 5
    assert capsys.readouterr().out.count("no connection (timed out); going on offline") == 1
    assert offline_records(tmp_path / "one")


@pytest.mark.parametrize("server", [("POST",)], indirect=True)
def test_a_server_that_begins_no_run_is_left_in_the_end(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(subject, "INIT_TIMEOUT_S", 2.0)
    begin = time.monotonic()
    logger = WandB(str(tmp_path), id="job")
    log_a_run(logger)
    logger.close()
    assert time.monotonic() - begin < 60
    assert "no connection" in capsys.readouterr().out
    assert offline_records(tmp_path)


def test_it_reports_nothing_home_unless_it_is_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for set_before, after in ((None, "false"), ("true", "true")):
        monkeypatch.delenv("WANDB_ERROR_REPORTING", raising=False)
        if set_before:
            monkeypatch.setenv("WANDB_ERROR_REPORTING", set_before)
        WandB(str(tmp_path))
        assert os.environ["WANDB_ERROR_REPORTING"] == after


def killed(folder: Path) -> list[tuple[int, float]]:
    """What a kill after 50 steps leaves, W&B's file being empty yet; after a resume at 40: the rows of the first 40."""
    table = CSVMetrics(str(folder))
    for step in range(9, 50, 10):
        table.log_metrics({"epoch": 0, "loss": 1 / step}, step=step)
    table.close()
    return [(step, 1 / step) for step in range(9, 40, 10)]


def history(lines: list[dict[str, Any]]) -> list[tuple[int, float]]:
    return [(line["trainer/global_step"], line["loss"]) for line in lines]


def test_after_a_kill_a_resumed_run_has_the_rows_from_before(tmp_path: Path) -> None:
    before = killed(tmp_path)
    logger = WandB(str(tmp_path), id="job")
    logger.log_hyperparams({"seed": 0})
    logger.resume_at(40)
    logger.log_metrics({"epoch": 0, "loss": 0.5}, step=49)
    logger.close()
    rows = [items(r.history.item) for r in offline_records(tmp_path) if r.WhichOneof("record_type") == "history"]
    assert history(rows) == [*before, (49, 0.5)]
    assert "step" not in rows[0] and rows[0]["epoch"] == 0


def test_online_it_sends_what_the_server_lacks(server: Server, tmp_path: Path) -> None:
    before = killed(tmp_path)
    server.earlier = {"trainer/global_step": 19, "loss": 1 / 19}
    logger = WandB(str(tmp_path), id="job")
    logger.resume_at(40)
    logger.log_metrics({"loss": 0.5}, step=49)
    logger.close()
    assert history([json.loads(line) for line in server.history]) == [*before[1:], (49, 0.5)]


def test_without_a_table_a_resume_sends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = WandB(str(tmp_path), id="job")
    logger.resume_at(40)
    logger.log_metrics({"loss": 0.5}, step=49)
    logger.close()
    rows = [items(r.history.item) for r in offline_records(tmp_path) if r.WhichOneof("record_type") == "history"]
    assert history(rows) == [(49, 0.5)]
    assert "cannot" not in capsys.readouterr().out


def test_a_network_that_goes_away_holds_up_the_end_for_a_while_only(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "FINISH_TIMEOUT_S", 2.0)
    logger = WandB(str(tmp_path), id="job")
    logger.log_metrics({"loss": 1.0}, step=0)
    server.stop()
    log_a_run(logger)
    begin = time.monotonic()
    logger.close()
    assert time.monotonic() - begin < 60
    assert list(tmp_path.glob("wandb/run-*/run-job.wandb")), "kept for wandb sync"
