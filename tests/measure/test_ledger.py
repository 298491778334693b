"""The ledger on its own: what it charges, that it closes, and what a resume adds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from frugal.errors import FrugalError
from frugal.measure import BUCKETS, Heartbeat, Ledger, credit_cut_off
from frugal.measure.heartbeat import read_heartbeat


def test_time_belongs_to_the_innermost_bucket_and_the_sum_closes() -> None:
    ledger = Ledger(start_age_s=5.0)
    with ledger.charge("compress"):
        time.sleep(0.05)
        with ledger.charge("measure"):
            time.sleep(0.1)
        time.sleep(0.05)
    ledger.base("other")
    seconds = ledger.seconds()
    assert list(seconds) == list(BUCKETS)
    assert 0.1 <= seconds["compress"] < 0.19
    assert 0.1 <= seconds["measure"] < 0.19
    assert 5.0 <= seconds["startup"] < 5.05
    assert sum(seconds.values()) == pytest.approx(ledger.wall_s(), abs=1e-3)


def test_a_bucket_that_does_not_exist_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(FrugalError, match=r"'trainstep'.*train_step"):
        Ledger().charge("trainstep")


def test_what_an_exception_leaves_open_is_unwound() -> None:
    ledger = Ledger()
    depth = ledger.depth()
    ledger.push("train_step")
    ledger.push("data_wait")
    ledger.unwind(depth)
    assert ledger.depth() == depth
    ledger.pop()  # nothing to pop is no error
    assert ledger.depth() == 1


def test_loop_clock_leaves_out_whatever_runs_inside_validation() -> None:
    ledger = Ledger()
    before = ledger.loop_ns()
    with ledger.charge("callbacks"):
        time.sleep(0.05)
        with ledger.evaluate("validation"):
            time.sleep(0.1)
            with ledger.charge("callbacks"):
                time.sleep(0.1)
        with ledger.charge("checkpoint"):
            time.sleep(0.1)
    counted = (ledger.loop_ns() - before) * 1e-9
    assert 0.05 <= counted < 0.1
    seconds = ledger.seconds()
    assert seconds["callbacks"] >= 0.15
    assert 0.1 <= seconds["validation"] < 0.2


def test_credit_cut_off_loses_what_lies_between_checkpoint_and_last_sign_of_life() -> None:
    credit = credit_cut_off({"startup": 2.0, "train_step": 7.0, "lost": 1.0}, 13.0)
    assert credit == {"startup": 2.0, "train_step": 7.0, "lost": 4.0}
    assert sum(credit.values()) == 13.0


def test_credit_cut_off_without_checkpoint_or_with_an_older_heartbeat() -> None:
    assert credit_cut_off({}, 8.0) == {"lost": 8.0}
    assert credit_cut_off({"train_step": 7.0}, 6.5) == {"train_step": 7.0, "lost": 0.0}


def test_two_kills_are_both_counted(tmp_path: Path) -> None:
    file = tmp_path / "heartbeat.json"
    file.write_text(json.dumps({"wall_s": 10.0, "step": 40}))
    second = Ledger()
    beat = Heartbeat(file, second, every_s=0.02)
    beat.start()
    # Killed again before the checkpoint was read: the first part is not forgotten.
    assert read_heartbeat(file)[0] >= 10.0
    second.load_state_dict({"id": "first", "seconds": {"startup": 2.0, "train_step": 6.0}})
    second.load_state_dict({"id": "first", "seconds": {"startup": 2.0, "train_step": 6.0}})  # once is enough
    beat.step = lambda: 55
    deadline = time.monotonic() + 10
    while read_heartbeat(file)[1] != 55 and time.monotonic() < deadline:
        time.sleep(0.01)
    wall_s, step = read_heartbeat(file)
    beat.stop()
    assert step == 55
    assert wall_s >= 10.0
    seconds = second.seconds()
    assert seconds["train_step"] == 6.0
    assert seconds["lost"] == pytest.approx(2.0)
    assert sum(seconds.values()) == pytest.approx(second.wall_s(), abs=1e-3)
    beat.stop(remove=True)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_heartbeat_is_no_sign_of_life(tmp_path: Path) -> None:
    (tmp_path / "heartbeat.json").write_text('{"wall_s": 3')
    assert read_heartbeat(tmp_path / "heartbeat.json") is None


def test_a_checkpoint_of_this_very_clock_adds_nothing() -> None:
    ledger = Ledger(start_age_s=3.0)
    ledger.load_state_dict(ledger.state_dict())
    assert ledger.wall_s() < 3.5


_CHILD = """
import json, os, sys, time
from frugal.measure import Ledger
ledger = Ledger.since_process_start()
assert "torch" not in sys.modules
import logging, warnings
warnings.simplefilter("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
import lightning.pytorch as pl
from lightning.pytorch.demos.boring_classes import BoringModel
from frugal.measure import TimeLedger, Throughput, Memory

class Slow(BoringModel):
    def training_step(self, batch, batch_idx):
        time.sleep(0.01)
        return super().training_step(batch, batch_idx)

trainer = pl.Trainer(accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False,
                     enable_progress_bar=False, enable_model_summary=False,
                     callbacks=[TimeLedger(ledger), Throughput(), Memory()])
trainer.fit(Slow())
with ledger.charge("test"):
    trainer.test(trainer.model, verbose=False)
with ledger.charge("compress"):
    time.sleep(0.2)
print(json.dumps({"seconds": ledger.seconds(), "wall": ledger.wall_s()}), flush=True)
os._exit(0)
"""


def test_the_ledger_closes_against_a_clock_outside_the_process(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    begin = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", _CHILD], cwd=tmp_path, env=environment, **pipes) as child:
        line = ""
        while not line.startswith("{"):
            line = child.stdout.readline()
            assert line, child.stderr.read()
        outside_s = time.perf_counter() - begin
    seconds, wall_s = json.loads(line)["seconds"], json.loads(line)["wall"]
    # The kernel tells the start of a process in hundredths of a second.
    assert abs(sum(seconds.values()) - outside_s) <= 0.01 * outside_s + 0.02
    assert abs(sum(seconds.values()) - wall_s) < 0.01
    assert seconds["other"] <= 0.02 * wall_s
    assert seconds["startup"] > 0.3
    assert 0.2 <= seconds["compress"] < 0.4
    assert seconds["train_step"] + seconds["warmup"] >= 64 * 2 * 0.01 * 0.9
