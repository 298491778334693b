"""What a run shows while it trains, and what goes to its loggers step by step."""

from __future__ import annotations

import inspect
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import Logger
from torch.utils.data import DataLoader, TensorDataset

from frugal import console
from frugal.callbacks import progress
from frugal.callbacks.progress import Progress, StepMetrics
from frugal.measure.meter import Lean
from frugal.measure.throughput import Throughput
from frugal.measure.time_ledger import TimeLedger


class Module(pl.LightningModule):
    """Counts how often its loss is read."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)
        self.reads = 0
        self.losses: list[float] = []

    @property
    def last_loss(self) -> torch.Tensor | None:
        self.reads += 1
        return torch.tensor(self.losses[-1]) if self.losses else None

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1])
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/loss", torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        groups = [{"params": [self.layer.weight]}, {"params": [self.layer.bias], "lr": 0.5}]
        optimizer = torch.optim.SGD(groups, lr=1.0)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5), "interval": "step"}]


class Kept(Logger):
    name = "kept"
    version = "0"

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to keep."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))


def loader(batches: int = 10) -> DataLoader[Any]:
    samples = 4 * batches
    return DataLoader(TensorDataset(torch.randn(samples, 4), torch.randint(0, 2, (samples,))), batch_size=4)


def fit(callbacks: list[pl.Callback], module: Module | None = None, logger: Any = False, **options: Any) -> pl.Trainer:
    module = module or Module()
    options = {"max_epochs": 3, "log_every_n_steps": 5, **options}
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=logger,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=any(isinstance(callback, Progress) for callback in callbacks),
        **options,
    )
    trainer.fit(module, loader(), loader(2))
    return trainer


# ------------------------------------------------------------------------------------------------------- step metrics
def test_step_metrics_come_every_n_optimizer_steps() -> None:
    module, kept = Module(), Kept()
    fit([TimeLedger(), Throughput(warmup_steps=0, window_steps=2), StepMetrics()], module, kept)
    rows = [(step, row) for step, row in kept.rows if "train/loss_step" in row]
    assert [step for step, _ in rows] == [4, 9, 14, 19, 24, 29]
    assert [row["train/loss_step"] for _, row in rows] == pytest.approx([module.losses[step] for step, _ in rows])
    assert [row["epoch"] for _, row in rows] == [0, 0, 1, 1, 2, 2]
    assert module.reads == len(rows), "the loss is read when it is logged, not every step"
    for _, row in rows:
        assert row["lr_1"] == pytest.approx(row["lr"] / 2)
        assert row["throughput/samples_per_s"] > 0
        shares = [value for key, value in row.items() if key.startswith("ledger/")]
        assert sum(shares) == pytest.approx(1)


def test_step_metrics_count_optimizer_steps_not_batches() -> None:
    kept = Kept()
    fit([StepMetrics()], logger=kept, accumulate_grad_batches=2)
    assert [step for step, row in kept.rows if "lr" in row] == [4, 9, 14]


def test_step_metrics_share_a_step_with_lightnings_own_rows() -> None:
    kept = Kept()
    fit([StepMetrics()], logger=kept)
    validated = [step for step, row in kept.rows if "val/loss" in row]
    assert validated == [9, 19, 29]
    assert set(validated) <= {step for step, row in kept.rows if "lr" in row}


def test_zero_means_never() -> None:
    kept = Kept()
    fit([StepMetrics()], logger=kept, log_every_n_steps=0)
    assert not [row for _, row in kept.rows if "lr" in row]


@pytest.mark.skipif(not progress._memory(torch.device("cpu")), reason="the system does not say")
def test_memory_is_the_memory_in_use_now() -> None:
    before = progress._memory(torch.device("cpu"))["memory/private_bytes"]
    block = torch.ones(16 * 2**20)  # 64 MiB, written
    during = progress._memory(torch.device("cpu"))["memory/private_bytes"]
    assert during - before > 0.9 * block.nbytes
    del block
    assert progress._memory(torch.device("cpu"))["memory/private_bytes"] < during - 0.9 * 64 * 2**20


# ------------------------------------------------------------------------------------------------------------ progress
def test_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_LINE_EVERY_S", 0.0)
    module = Module()
    fit([Progress(), Throughput(warmup_steps=0, window_steps=2)], module)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert [line.split("step ")[-1] for line in lines] == ["10/30", "20/30", "30/30"]
    for line, loss in zip(lines, module.losses[9::10], strict=True):
        assert f"loss {loss:.4g}" in line
        assert "val/loss " in line
        assert "samples/s" in line


def test_short_epochs_do_not_fill_a_log(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_LINE_EVERY_S", 3600.0)
    fit([Progress()], max_epochs=20)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 1
    assert lines[0].startswith("epoch 20/20") and lines[0].endswith("step 200/200")


def test_a_long_epoch_says_something_in_between(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_LONG_EPOCH_S", 0.0)
    monkeypatch.setattr(progress, "_REFRESH_S", 0.0)
    monkeypatch.setattr(progress, "_LINE_EVERY_S", 3600.0)
    fit([Progress()], max_epochs=1)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert [line.split("step ")[-1] for line in lines] == [f"{step}/10" for step in range(1, 11)]


def test_the_loss_is_read_by_the_clock_not_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    module = Module()
    fit([Progress(style="bar")], module, max_epochs=10)
    assert module.reads <= 3, "the clock stood still: at the first step and for the last line"


class Drawn:
    """Stands for the console's bar."""

    def __init__(self) -> None:
        self.done = 0.0
        self.closed = False
        self.seen: list[tuple[float, str | None]] = []

    def advance(self, amount: float = 1, description: str | None = None) -> None:
        self.done += amount
        self.seen.append((self.done, description))

    def __enter__(self) -> Drawn:
        return self

    def __exit__(self, *_: Any) -> None:
        self.closed = True


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float | None, Drawn]]:
    opened: list[tuple[str, float | None, Drawn]] = []

    def open_bar(description: str, total: float | None = None, unit: str = "") -> Drawn:
        opened.append((description, total, Drawn()))
        return opened[-1][2]

    monkeypatch.setattr(console, "progress", open_bar)
    monkeypatch.setattr(progress, "_REFRESH_S", 0.0)
    return opened


def test_one_bar_over_the_whole_fit(bars: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    fit([Progress(style="bar")])
    ((description, total, bar),) = bars
    assert (description, total) == ("epoch 1/3", 30)
    assert [done for done, _ in bar.seen[1:]] == list(range(1, 31))
    assert bar.seen[-1][1] is not None and bar.seen[-1][1].startswith("epoch 3/3  loss ")
    assert bar.closed
    assert "epoch" not in capsys.readouterr().out, "the bar is enough; the line goes to the log file"


def test_the_log_file_has_the_lines_beside_a_bar(bars: list[Any], tmp_path: Any) -> None:
    console.set_log(tmp_path / "log.txt")
    try:
        fit([Progress(style="bar")])
    finally:
        console.set_log(None)
    assert "epoch 3/3" in (tmp_path / "log.txt").read_text()


def test_the_bar_is_closed_when_training_breaks(bars: list[Any]) -> None:
    class Breaks(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == 7:
                raise ValueError("broken on purpose")

    with pytest.raises(ValueError, match="broken on purpose"):
        fit([Progress(style="bar"), Breaks()])
    assert bars[0][2].closed


def test_test_and_validation_have_bars_of_their_own(bars: list[Any]) -> None:
    module = Module()
    trainer = fit([Progress(style="none")], module)
    assert bars == []
    callback = trainer.progress_bar_callback
    assert isinstance(callback, Progress)
    callback.style = "auto"
    trainer.validate(module, loader(3), verbose=False)
    trainer.test(module, loader(6), verbose=False)
    assert [(description, total, bar.closed) for description, total, bar in bars] == [
        ("validation", 3, True),
        ("test", 6, True),
    ]
    assert bars[1][2].done == 6


def test_none_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    fit([Progress(style="none")])
    assert "epoch" not in capsys.readouterr().out


@pytest.mark.parametrize("callback", [Progress, StepMetrics])
def test_hooks_of_a_batch_that_are_not_needed_cost_nothing(callback: type[pl.Callback]) -> None:
    """Lightning passes over a hook that is not callable; `on_train_batch_end` is the one that both need."""
    hooks = [name for name, _ in inspect.getmembers(pl.Callback, inspect.isfunction)]
    steps = [n for n in hooks if n.startswith(("on_train_batch", "on_before", "on_after", "on_validation_batch_start"))]
    assert len(steps) >= 6
    assert [name for name in steps if callable(getattr(callback, name))] == ["on_train_batch_end"]
    assert issubclass(callback, Lean), "which knows the hooks; no list of them is repeated"
