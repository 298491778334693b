"""Ranks: who is which, what is refused, and jobs of two ranks that end well, fail, or lose one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import frugal
import rank_jobs as jobs
from frugal import ranks
from frugal.compose import compose
from frugal.errors import RunError, SettingsError
from frugal.record import Record

TINY = ["trainer.accelerator=cpu", "measure=none", "trainer.threads=1", "logger=none"]
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "x",
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "1",
}
SRUN = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1"}


def test_place_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "4")  # of a batch script: srun would start them
    monkeypatch.setenv("RANK", "3")  # of somebody else
    assert ranks.place() == ranks.Place()


def test_place_under_torchrun_and_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert ranks.place() == ranks.Place(3, 4, 1, 2, 1, "torchrun")
    for name in TORCHRUN:
        monkeypatch.delenv(name)
    for name, value in (SRUN | {"SLURM_STEP_NUM_NODES": "2"}).items():
        monkeypatch.setenv(name, value)
    assert ranks.place() == ranks.Place(3, 4, 1, 2, 1, "srun")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trainer.devices=2"], "trainer.devices=2: strategy=single trains in one process; choose strategy=ddp"),
        (["strategy=ddp", "trainer.devices=3"], "data.batch_size=64: is the batch of all ranks together, and 3"),
        (["strategy=fsdp_tp", "trainer.devices=3"], "strategy.tensor_ranks=2: does not divide the 3 ranks"),
        (["strategy=ddp", "trainer.num_nodes=2"], "on several use torchrun --nnodes, or srun"),
        (["strategy=fsdp", "pruning=gradual"], "strategy=fsdp cannot be combined with pruning=gradual: its masks need"),
        (["strategy=fsdp", "quantization=qat_int8"], "cannot be combined with quantization=qat_int8: its scales"),
        (["strategy=fsdp", "callbacks=ema"], "its averages need whole weights"),
        (["strategy=fsdp", "optim=muon"], "it makes whole matrices orthogonal"),
        (["strategy=fsdp", "compile=default"], "weights come in parts"),
        (["strategy=tensor_parallel", "model=lenet5", "data=digits"], None),
        (["strategy.activation_checkpointing=true"], "SimpleNet has no list of blocks"),
        (["strategy=fsdp", "strategy.cpu_offload=true"], "in the host's memory already"),
    ],
)
def test_what_is_refused(words: list[str], said: str | None) -> None:
    said = said or "LeNet5 does not say how its layers are shared out"
    with pytest.raises(SettingsError) as refused:
        frugal.run([*TINY, *words])
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_torchrun_must_fit_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (TORCHRUN | {"RANK": "0"}).items():
        monkeypatch.setenv(name, value)
    cfg, _ = compose("train", ["strategy=ddp", "trainer.devices=2"])
    with pytest.raises(SettingsError, match=r"torchrun started 4 processes; .* trainer.devices=2 trainer.num_nodes=2"):
        ranks.check(cfg)


def processes() -> set[int]:
    """Those of `frugal.ranks` that this one started."""
    own = subprocess.run(["pgrep", "-P", str(os.getpid()), "-f", "frugal.ranks"], capture_output=True, text=True)
    return {int(pid) for pid in own.stdout.split()}


def test_two_ranks_and_one_reach_the_same_and_leave_nothing() -> None:
    job = [*TINY, "precision=fp64", "trainer.max_epochs=1", "preprocess=shifts"]
    environment, hook = dict(os.environ), sys.excepthook
    two = frugal.run([*job, "strategy=ddp", "trainer.devices=2"])
    one = frugal.run(job)
    for name, value in one.quality.items():
        assert two.quality[name] == pytest.approx(value, rel=1e-6), name
    assert two.run.steps_executed == one.run.steps_executed == 21
    assert two.compute.flops_total == one.compute.flops_total
    assert not processes() and not torch.distributed.is_initialized()
    assert dict(os.environ) == environment and sys.excepthook is hook


@pytest.mark.slow
def test_a_killed_rank_fails_its_job_alone(tmp_path: Path) -> None:
    """The next job runs."""
    log = Path(os.environ["FRUGAL_LOG_DIR"])

    def kill() -> None:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            beats = list(log.glob("default/*/progress.bin"))
            if beats and int.from_bytes(beats[0].read_bytes(), "little") > 5:
                for pid in processes():
                    os.kill(pid, signal.SIGKILL)
                return
            time.sleep(0.05)

    killer = threading.Thread(target=kill)
    killer.start()
    begun = time.monotonic()
    with pytest.raises(RunError, match="rank 1 was killed by SIGKILL while the job trained"):
        frugal.run([*TINY, "strategy=ddp", "trainer.devices=2", "trainer.max_epochs=5000"])
    killer.join()
    assert time.monotonic() - begun < 200 and not processes()
    (folder,) = log.glob("default/*/record.json")
    record = Record.read(folder.parent)
    assert record.status == "failed" and "SIGKILL" in str(record.error)
    assert frugal.run([*TINY, "strategy=ddp", "trainer.devices=2", "trainer.max_epochs=1"]).status == "completed"


@pytest.mark.slow
@pytest.mark.parametrize("launch", [[], ["launch=processes"]])
def test_a_sweep_makes_exactly_its_records(tmp_path: Path, launch: list[str]) -> None:
    words = ["-m", *TINY, *launch, "strategy=ddp", "trainer.devices=2", "seed=0,1", "trainer.max_epochs=1"]
    done = command([sys.executable, "-m", "frugal", "train", *words], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = [Record.read(path.parent) for path in tmp_path.glob("logs/default/*/record.json")]
    assert sorted((record.status, record.run.seed) for record in found) == [("completed", 0), ("completed", 1)]


@pytest.mark.slow
def test_torchrun_makes_one_record_a_job(tmp_path: Path) -> None:
    """A sweep of which the first job fails in one of its ranks alone."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = ["-m", *TINY, "strategy=ddp", "trainer.devices=2", "seed=0,1", "trainer.max_epochs=1"]
    done = command([*torchrun, "-m", "frugal", "train", *words], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = [Record.read(path.parent) for path in tmp_path.glob("logs/default/*/record.json")]
    assert sorted((record.status, record.run.seed) for record in found) == [("completed", 0), ("completed", 1)]
    assert done.stdout.count("Running ddp-") == 2  # rank 0 says it


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_under_torchrun_the_job_after_a_failed_one_runs(tmp_path: Path, rank: int) -> None:
    home = jobs.make_home(tmp_path / "home")
    job = [*TINY, "strategy=fsdp", "trainer.devices=2", "trainer.max_epochs=1"]
    cases = [{"name": "fails", "words": job, "stop_at": 5, "stop_rank": rank}, {"name": "runs", "words": job}]
    (home / "cases.json").write_text(json.dumps(cases))
    said = jobs.torchrun(2, home, "cases.json", "results.json")
    results = json.loads((home / "results.json").read_text())
    assert "stopped by the test" in results["fails"]["error"], said
    assert results["runs"]["error"] is None


@pytest.mark.slow
def test_sigterm_ends_a_job_of_ranks_with_a_checkpoint_and_it_goes_on(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "frugal", "train", *TINY, "strategy=fsdp", "trainer.devices=2"]
    words += ["trainer.max_epochs=3000"]
    process = start(words, tmp_path)
    progress = None
    until = time.monotonic() + 120
    while time.monotonic() < until and not (progress and int.from_bytes(progress.read_bytes(), "little") > 5):
        progress = next(iter(tmp_path.glob("logs/default/*/progress.bin")), None)
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    (path,) = tmp_path.glob("logs/default/*/record.json")
    assert Record.read(path.parent).status == "interrupted"
    step = int(torch.load(path.parent / "checkpoints" / "last.ckpt", weights_only=True)["global_step"])
    assert step > 5
    more = command([*words[:-1], f"run.resume={path.parent}", "strategy=single", "trainer.devices=1",
                    f"trainer.max_epochs={step // 21 + 2}"], tmp_path)  # fmt: skip
    assert more.returncode == 0, more.stdout + more.stderr
    record = Record.read(path.parent)
    assert record.status == "completed" and record.run.resumed_at_step == [step]


def start(words: list[str], home: Path) -> subprocess.Popen[str]:
    source = str(Path(frugal.__file__).parents[1])
    env = {**os.environ, "FRUGAL_LOG_DIR": str(home / "logs"), "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    for name in TORCHRUN:
        env.pop(name, None)
    return subprocess.Popen(words, cwd=home, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def command(words: list[str], home: Path) -> subprocess.CompletedProcess[str]:
    process = start(words, home)
    try:
        out, err = process.communicate(timeout=250)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    return subprocess.CompletedProcess(words, process.returncode, out, err)
