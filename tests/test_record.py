"""The record: the keys that every reader counts on, its reading, and that it is written whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from frugal.errors import RunError
from frugal.record import FILE_NAME, Energy, Latency, Record, Throughput, Time, write_atomic

# The keys that every reader may count on, as docs/measurement.md lists them under "The record's shape".
DOCS = Path(__file__).parents[1] / "docs" / "measurement.md"
SECTIONS = ("run", "fingerprint", "time", "throughput", "compute", "memory", "size", "sparsity", "energy")


def documented() -> dict[str, set[str]]:
    """Keys by section; the sections and single values at the top under ""."""
    shape = DOCS.read_text().split("## The record's shape")[1].split("```")[1]
    keys: dict[str, set[str]] = {"": set()}
    for line in shape.strip().splitlines():
        # `status  completed | failed      error  null or one line` names two
        keys[""] |= set(re.findall(r"(?:^|\s{3,})(\w+)(?=\s{2,}\S)", line)) | {line.split()[0]}
        section, _, text = line.partition(" ")
        if section in SECTIONS:
            plain = re.sub(r"\([^)]*\)|\[[^\]]*\]|\{[^}]*\}", "", text)
            keys[section] = {name.strip() for name in plain.split(",")}
        elif section == "latency":
            keys[section] = {name.strip() for name in re.sub(r"[\[\]{}]", "", text).split(",")}
    return keys


def missing_keys(plain: dict[str, Any]) -> set[str]:
    """What the documented shape has and `plain` lacks."""
    keys = documented()
    lacking = keys[""] - plain.keys()
    for section in SECTIONS:
        lacking |= {f"{section}.{name}" for name in keys[section] - plain.get(section, {}).keys()}
    return lacking


def full() -> Record:
    record = Record(status="completed", quality={"test/accuracy": 0.5}, diagnosis="All of it.")
    record.run.resumed_at_step = [3, 5]
    record.time = Time(2.0, {"startup": 0.5, "train_step": 1.5}, None)
    record.throughput = Throughput(10.0, 9.0, 8.0, 11.0, None, 30)
    record.latency = [
        Latency("eager", 1, 2, "dense", 0.1, 0.2, 0.3),
        Latency("onnx", 8, 2, "converted", 1, 2, 3, 4.0, 2.0),
    ]
    record.energy = Energy(None, "no counter")
    record.techniques = {"pruning": {"option": "halve", "density": 0.5}}
    record.absent = {"compute.mfu": "unknown device"}
    record.config = {"optim": {"lr": 0.1, "betas": [0.9, 0.99]}, "choices": {"model": None}}
    return record


def test_documented_keys_are_there_from_the_first_writing_on() -> None:
    keys = documented()
    assert keys[""] >= {"schema", "status", "error", "config", "quality", "latency", "techniques", *SECTIONS}
    assert sum(map(len, keys.values())) > 60  # the list was found
    assert not missing_keys(Record().to_dict())
    assert Record(latency=full().latency).to_dict()["latency"][0].keys() >= keys["latency"]


def test_what_a_record_holds_is_documented() -> None:
    keys, plain = documented(), full().to_dict()
    assert plain.keys() <= keys[""]
    for section in SECTIONS:
        assert plain[section].keys() <= keys[section], section


def test_what_is_written_is_read(tmp_path: Path) -> None:
    record = full()
    path = record.write(tmp_path)
    assert path == tmp_path / FILE_NAME
    assert Record.read(tmp_path) == Record.read(path) == record
    assert json.loads(path.read_text())["schema"] == 1


def test_figures_that_json_has_no_word_for_are_absent(tmp_path: Path) -> None:
    record = Record(quality={"test/loss": float("nan")}, config={"x": [float("inf"), {"y": float("-inf")}]})
    plain = json.loads(record.write(tmp_path).read_text())
    assert plain["quality"] == {"test/loss": None} and plain["config"] == {"x": [None, {"y": None}]}


def test_keys_of_a_newer_version_are_left_out(tmp_path: Path) -> None:
    plain = full().to_dict()
    plain["carbon"] = {"kg": 1}
    for section in SECTIONS:
        plain[section]["new_in_the_future"] = 1
    plain["latency"][0]["p999_ms"] = 1
    assert Record.from_dict(plain) == full()


def test_sections_that_an_older_version_did_not_write(tmp_path: Path) -> None:
    plain = {"schema": 1, "status": "failed", "run": {"name": "a"}, "latency": None, "time": None}
    record = Record.from_dict(plain)
    assert (record.status, record.run.name, record.latency, record.time) == ("failed", "a", [], Time())


@pytest.mark.parametrize("schema", [0, 2, "1", None])
def test_another_schema_is_refused(schema: Any, tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text(json.dumps({**full().to_dict(), "schema": schema}))
    with pytest.raises(RunError, match="schema"):
        Record.read(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "null", '"x"', '{"schema": 1, "run": 3}', '{"schema": 1, "latency": [{"x": 1}]}', "\x00\xff"],
)
def test_what_is_no_record_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(text.encode("latin-1"))
    with pytest.raises(RunError) as error:
        Record.read(tmp_path)
    assert "\n" not in str(error.value)


def test_no_record_at_all(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no record here"):
        Record.read(tmp_path)
    with pytest.raises(RunError, match="no record here"):
        Record.read(tmp_path / "nowhere")


# ----------------------------------------------------------------------------------------------- whole or not at all
@pytest.mark.parametrize("step", ["fsync", "replace", "fdopen"])
def test_a_failure_between_leaves_the_old_file_and_no_other(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_ctrl_c_between_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "file", "new")
    assert os.listdir(tmp_path) == []


def test_the_contents_are_on_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append(("sync", os.fstat(handle).st_size)), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(("rename", 0)), replace(a, b)))
    write_atomic(tmp_path / "file", b"12345")
    assert order[:2] == [("sync", 5), ("rename", 0)]


def test_content_of_every_kind(tmp_path: Path) -> None:
    for content, expected in (("é", "é".encode()), (b"\x00", b"\x00"), (memoryview(b"abc"), b"abc"), ("", b"")):
        write_atomic(tmp_path / "file", content)  # type: ignore[arg-type]
        assert (tmp_path / "file").read_bytes() == expected
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_a_record_has_no_default_that_two_share() -> None:
    one, two = Record(), Record()
    one.quality["a"] = 1.0
    one.run.resumed_at_step.append(1)
    one.time.ledger_s["b"] = 1.0
    assert two == Record() and dataclasses.asdict(two)["quality"] == {}
