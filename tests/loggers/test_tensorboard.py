"""`logger=tensorboard`: what a reader of its event files finds, after kills and resumes too."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from frugal.errors import FrugalError
from frugal.loggers import tensorboard as subject
from frugal.loggers.tensorboard import TensorBoard

pytestmark = pytest.mark.tensorboard
RECORD = {
    "schema": 1,
    "status": "completed",
    "quality": {"test/accuracy": 0.75},
    "fingerprint": {"device": "a | b"},
    "time": {"wall_s": 4.0, "ledger_s": {"train_step": 3.0, "other": 1.0}},
}


def read(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    return found


def points(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read(folder).Scalars(tag)]


def text(folder: Path, tag: str) -> str:
    (event,) = read(folder).Tensors(f"{tag}/text_summary")
    return event.tensor_proto.string_val[0].decode()


def test_a_row_is_in_the_file_when_the_call_returns(tmp_path: Path) -> None:
    logger = TensorBoard(str(tmp_path / "run"))
    assert not (tmp_path / "run").exists(), "nothing is begun before the first metric"
    logger.log_metrics({"train/loss_step": 0.5, "lr": 0.25}, step=49)
    logger.log_metrics({"train/loss_step": 0.125}, step=99)
    assert points(tmp_path / "run", "train/loss_step") == [(49, 0.5), (99, 0.125)]
    assert points(tmp_path / "run", "lr") == [(49, 0.25)]


def test_the_record_is_the_last_point_and_two_tables(tmp_path: Path) -> None:
    logger = TensorBoard(str(tmp_path))
    logger.log_metrics({"train/loss": 1.0}, step=7)
    logger.log_record(RECORD)
    logger.close()
    assert points(tmp_path, "test/accuracy") == [(8, 0.75)]
    assert points(tmp_path, "time/ledger_s/train_step") == [(8, 3.0)]
    assert "| test/accuracy | 0.75 |" in text(tmp_path, "record")
    assert "| fingerprint/device | a \\| b |" in text(tmp_path, "record")
    assert text(tmp_path, "ledger").splitlines()[2:] == [
        "| train_step | 3.000 | 75.0 % |",
        "| other | 1.000 | 25.0 % |",
    ]


@pytest.mark.parametrize("status", ["completed", "failed"])
def test_the_settings_are_a_session_of_the_hparams_tab(tmp_path: Path, status: str) -> None:
    from tensorboard.plugins.hparams import metadata

    logger = TensorBoard(str(tmp_path))
    config = {"optim": {"_target_": "torch.optim.SGD", "lr": 0.5, "fused": True}, "model": {"init_from": None}}
    logger.log_hyperparams({**config, "choices": {"optim": "sgd"}, "logger": {"csv": {"folder": "x"}}})
    logger.log_metrics({"train/loss": 1.0}, step=0)
    logger.log_record({**RECORD, "status": status})
    logger.close()
    content = read(tmp_path).summary_metadata
    start = metadata.parse_session_start_info_plugin_data(
        content[metadata.SESSION_START_INFO_TAG].plugin_data.content
    ).hparams
    values = {key: getattr(value, value.WhichOneof("kind")) for key, value in start.items()}
    assert values == {"optim": "sgd", "optim.lr": 0.5, "optim.fused": "true"}
    assert metadata.EXPERIMENT_TAG not in content, "with it, TensorBoard would show the columns of one run only"
    assert (metadata.SESSION_END_INFO_TAG in content) == (status == "completed")


def test_after_a_resume_no_step_is_there_twice(tmp_path: Path) -> None:
    def log(logger: TensorBoard, steps: range) -> None:
        for step in steps:
            logger.log_metrics({"loss": 1 / (step + 1)}, step=step)

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    log(TensorBoard(str(whole)), range(100))
    log(TensorBoard(str(cut)), range(47))  # killed, after a checkpoint at 40
    second = TensorBoard(str(cut))
    second.resume_at(40)
    log(second, range(40, 100))
    assert points(cut, "loss") == points(whole, "loss")


def test_a_longer_run_has_the_new_record_only(tmp_path: Path) -> None:
    for begin in (0, 2):
        logger = TensorBoard(str(tmp_path))
        if begin:
            logger.resume_at(begin)
        for step in range(begin, begin + 2):
            logger.log_metrics({"loss": 1.0}, step=step)
        logger.log_record({**RECORD, "quality": {"test/accuracy": 0.5 + begin / 8}})
        logger.close()
    assert points(tmp_path, "test/accuracy") == [(4, 0.75)]
    assert [step for step, _ in points(tmp_path, "loss")] == [0, 1, 2, 3]


def test_what_cannot_be_written_is_one_line_and_the_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    logger = TensorBoard(str(tmp_path / "file" / "run"))
    logger.log_metrics({"loss": 1.0}, step=0)
    logger.log_metrics({"loss": 1.0}, step=1)
    logger.log_record(RECORD)
    logger.close()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("TensorBoard: ") and line.endswith("the run goes on without TensorBoard")


def test_a_full_disk_is_one_line_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    died: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: died.append(args.thread.name))
    subject._say_nothing_of_its_thread.cache_clear()
    logger = TensorBoard(str(tmp_path))
    logger.log_metrics({"loss": 1.0}, step=0)
    writing = logger.experiment.file_writer.event_writer._async_writer._worker

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RecordWriter, "write", full)
    logger.log_metrics({"loss": 1.0}, step=1)
    logger.log_record(RECORD)
    logger.close()
    writing.join()
    (line,) = capsys.readouterr().out.splitlines()
    assert "No space left" in line and line.endswith("the run goes on without TensorBoard")
    another = threading.Thread(target=full, name="another")
    another.start()
    another.join()
    assert died == ["another"], "the terminal is told of every thread but TensorBoard's"
    subject._say_nothing_of_its_thread.cache_clear()


def test_missing_tensorboard_is_one_line_with_its_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(FrugalError, match=r'pip install "frugal-ml\[tensorboard\]"'):
        TensorBoard(str(tmp_path))
