"""The search on made-up tries: what is said, kept and returned."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from frugal import job
from frugal.compression import judge, search
from frugal.compression.plan import Targets, ways
from frugal.errors import SettingsError
from frugal.record import Record, Size


class FakeJudge:
    """6,000 samples, and drops in the order in which they are asked for."""

    task, samples = "classification", 6000
    drops: Iterator[tuple[float, float]]

    def __init__(self, words: list[str], reference: Path) -> None:
        self.words = words

    def drop(self, file: Path) -> tuple[float, float]:
        return next(self.drops)


@pytest.fixture
def tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Plant what the tries bring, (bytes, drop, error) or an exception each; gives their words."""
    source = tmp_path / "run"
    source.mkdir()
    (source / "model.safetensors").write_bytes(b"")
    reference = Record(status="completed", size=Size(file_bytes=100_000, dense_fp32_bytes=100_000))
    reference.quality = {"val/accuracy": 0.98, "test/accuracy": 0.97}
    reference.time.ledger_s, reference.config = {"train_step": 4.0}, {"trainer": {"max_epochs": 4, "max_steps": -1}}
    reference.write(source)
    said: list[list[str]] = []

    def plant(*outcomes: Any, test: float = 0.97) -> tuple[Path, list[list[str]]]:
        waiting = iter(outcomes)
        FakeJudge.drops = ((drop, error) for _, drop, error in (o for o in outcomes if isinstance(o, tuple)))

        def run(words: list[str]) -> tuple[Record, Path]:
            said.append(list(words))
            outcome = next(waiting)
            if isinstance(outcome, BaseException):
                raise outcome
            folder = tmp_path / f"try{len(said)}"
            folder.mkdir()
            (folder / "model.frugal").write_bytes(b"")
            return Record(size=Size(file_bytes=outcome[0])), folder

        monkeypatch.setattr(search, "run", run)
        monkeypatch.setattr(judge, "Judge", FakeJudge)
        monkeypatch.setattr(job, "run_overrides", lambda words, verb: Record(quality={"test/accuracy": test}))
        return source, said

    return plant


def test_it_goes_on_until_the_targets_are_surely_met(tried: Any, capsys: pytest.CaptureFixture[str]) -> None:
    source, said = tried((12_500, 0.0, 0.001), (9_000, 0.0015, 0.001), (9_000, 0.0005, 0.001))
    assert search.search(source, ["trainer.max_epochs=0"], ["seed=3"], Targets(bytes=10_000, max_drop=0.002)) == 0
    assert len(said) == 3 and "quantization=rate" in said[0] and "trainer.max_epochs=4" in said[0]
    assert "trainer.max_epochs=8" in said[2] and "run.test=false" in said[2] and said[2][-1] == "seed=3"
    out = capsys.readouterr().out
    assert "Try 2" in out and "misses bytes" in out and "meets all, but not surely" in out
    assert "Met: 9,000 bytes, drop 0.05 ± 0.10 points: meets all" in out
    assert "looked at once: test/accuracy 97.00 %, before 97.00 %" in out and out.rstrip().endswith("try3/model.frugal")


def test_a_loss_on_the_test_set_is_said(tried: Any, capsys: pytest.CaptureFixture[str]) -> None:
    source, _ = tried((9_000, 0.0, 0.001), test=0.96)
    assert search.search(source, [], [], Targets(bytes=10_000, max_drop=0.002)) == 0
    assert "There it loses more than was asked for" in capsys.readouterr().out


def test_an_interrupted_search_keeps_the_best_so_far(tried: Any, capsys: pytest.CaptureFixture[str]) -> None:
    source, _ = tried((9_000, 0.0015, 0.001), KeyboardInterrupt())
    assert search.search(source, [], [], Targets(bytes=10_000, max_drop=0.002)) == 0
    assert "Met, but not surely: 9,000 bytes" in (out := capsys.readouterr().out) and "(interrupted)" in out
    source.joinpath("model.safetensors").touch()


def test_nothing_is_kept_of_a_search_that_was_interrupted_at_once(tried: Any) -> None:
    source, _ = tried(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        search.search(source, [], [], Targets(bytes=10_000))


def test_what_cannot_be_done_is_told_and_passed_over(tried: Any, capsys: pytest.CaptureFixture[str]) -> None:
    source, said = tried(SettingsError("not this network"), (8_000, 0.0, 0.001))
    assert search.search(source, [], [], Targets(bytes=10_000)) == 0
    assert "cannot be done: not this network" in capsys.readouterr().out
    assert "quantization=rate" in said[0] and "pruning=gradual" in said[1]


def test_the_time_given_ends_it(tried: Any, capsys: pytest.CaptureFixture[str]) -> None:
    source, said = tried((20_000, 0.0, 0.001))  # 4 s of training, 2.5 times as long, do not fit a second time
    assert search.search(source, [], [], Targets(bytes=10_000, max_drop=0.002, seconds=1.0)) == 1
    out = capsys.readouterr().out
    assert len(said) == 1 and "(the time is over)" in out
    assert "Not met; the nearest: 20,000 bytes" in out
    assert "Missed: target.bytes=10000, it has 20,000, 2.00 times as much" in out


def test_the_techniques_that_a_command_names_bound_the_search() -> None:
    names = [way.name for way in search.allowed(ways(None), ["pruning=gradual", "optim.lr=0.1"])]
    assert names == ["pruned"]
    assert next(way.name for way in search.allowed(ways(None), ["quantization=static_int8"])) == "static_int8"
    assert len(search.allowed(ways(None), ["distillation=soft_targets"])) == len(ways(None))
    with pytest.raises(SettingsError, match="pruning=snip: no combination"):
        search.allowed(ways(None), ["pruning=snip"])
