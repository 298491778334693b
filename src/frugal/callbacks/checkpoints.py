"""Checkpoints from which a killed run goes on bit for bit: `last` by the clock and at the end, `best` by a metric.

Each is written beside, synced and renamed, so that a kill at any moment leaves the old file or the new one. They hold
plain containers and tensors and load with `weights_only=True`.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from frugal import console, interrupts
from frugal.measure.meter import Lean
from frugal.record import write_atomic


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's own reading and format; writing is all or nothing.

    Args:
        meta: what every checkpoint says of itself under the key "frugal"; plain values.
    """

    def __init__(self, meta: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.meta = meta

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        if self.meta is not None:
            checkpoint = {**checkpoint, "frugal": self.meta}
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(Path(path), buffer.getbuffer())
        remove_pieces(Path(path), checkpoint.get("shards"))

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Of one that several ranks wrote in pieces, the whole."""
        checkpoint = super().load_checkpoint(path, *args, **kwargs)
        if "shards" not in checkpoint:
            return checkpoint
        from frugal.strategy.shards import joined  # a second of imports that other runs need not wait for

        return joined(checkpoint, Path(path))


def remove_pieces(checkpoint: Path, keep: str | None = None) -> None:
    """Folders beside a checkpoint with the pieces of an earlier one, see `strategy.shards`."""
    for folder in checkpoint.parent.glob(f"{checkpoint.stem}-*.*"):
        if folder.is_dir() and folder.name != keep:
            shutil.rmtree(folder, ignore_errors=True)


_SOONEST_S = 2.0
_AGREE_EVERY_S = 0.5


class Checkpoints(Lean, Checkpoint):
    """Writes `last.ckpt` and `best.ckpt` into `folder`.

    Args:
        folder: where they go.
        monitor: the metric by which `best` is chosen; where it is never logged there is no `best`.
        mode: "min" or "max".
        every_s: `last` is written after a micro-batch once this many seconds have passed since it was last written, or
            sooner, while writing costs less than half a percent of the time.
        every_steps: and after every so many optimizer steps.
        on_step: called once for each optimizer step that was executed.
        extends: the run had ended and is trained on: what stopped it then does not stop it now.
    """

    def __init__(
        self,
        folder: str,
        monitor: str = "val/loss",
        mode: str = "min",
        every_s: float = 60.0,
        every_steps: int | None = None,
        on_step: Callable[[], None] | None = None,
        extends: bool = False,
    ) -> None:
        self.folder, self.monitor, self.mode = Path(folder), monitor, mode
        self.every_s, self.every_steps = every_s, every_steps
        self.on_step = on_step
        self.extends = extends
        self.best: float | None = None
        self.leaving = False  # asked to stop: write `last` at the next step's end and leave
        self._all_leave = False  # so are all ranks: one alone would wait for the others
        self._stopped = False
        self._owed = False
        self._written_at = time.monotonic()
        self._cost_s = 0.0  # of the last write
        self._step = -1
        self._agree_at, self._agreed_at = 0, (0, 0.0)  # of several ranks: the next step to agree at; the last, and when

    @property
    def state_key(self) -> str:
        return "frugal.Checkpoints"

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "stopped": self._stopped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self._stopped = state_dict["best"], state_dict["stopped"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._written_at = time.monotonic()
        self._step = trainer.global_step
        self._agree_at, self._agreed_at = self._step, (self._step, self._written_at)
        # Lightning saves no `should_stop`: without this a run that early stopping had ended would train on.
        if self._stopped and not self.extends:
            trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._step:  # an accumulating micro-batch
            return
        self._step = step
        if self.on_step is not None:
            self.on_step()
        if not self._owed:
            self._owed = self._due(trainer, step)
        # A validation that follows this batch belongs to its checkpoint, and so does what hangs on it (early stopping,
        # `best`): where one follows, the checkpoint is owed to the next batch or to the epoch's end.
        followed = (
            trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
            or trainer.should_stop
            or (batch_idx + 1) % (trainer.val_check_batch or 1) == 0
        )
        if self._owed and not followed:
            self._write(trainer)
            self._leave()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit" or self.monitor not in trainer.callback_metrics:
            return
        value = float(trainer.callback_metrics[self.monitor])
        if self.best is None or (value < self.best if self.mode == "min" else value > self.best):
            self.best = value
            trainer.save_checkpoint(self.folder / "best.ckpt", weights_only=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._owed or self._due(trainer, trainer.global_step):
            self._write(trainer)
            self._leave()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if "loops" in checkpoint:
            _correct_epoch_progress(trainer, checkpoint["loops"]["fit_loop"])

    def _leave(self) -> None:
        if self._all_leave:
            raise KeyboardInterrupt

    def _due(self, trainer: Trainer, step: int) -> bool:
        by_step = self.every_steps is not None and step % self.every_steps == 0
        if trainer.world_size == 1:
            self._all_leave = self.leaving
            return by_step or self.leaving or self._clock_is_due()
        return self._agree(trainer, step) or by_step

    def _agree(self, trainer: Trainer, step: int) -> bool:
        """Whether the ranks, which write together, do so now: by rank 0's clock, or since one of them is to leave.

        They ask each other every half a second, at a step that they agreed on before: a look at every step would make
        a GPU wait.
        """
        if step < self._agree_at:
            return False
        now = time.monotonic()
        before, at = self._agreed_at
        ahead = max(1, int((step - before) / max(now - at, 1e-9) * _AGREE_EVERY_S))
        first = trainer.is_global_zero
        own = [int(first and self._clock_is_due()), int(self.leaving), ahead if first else 0]
        told = torch.tensor(own, device=trainer.strategy.root_device)
        due, leaving, ahead = trainer.strategy.reduce(told, reduce_op="max").tolist()
        self._agree_at, self._agreed_at = step + ahead, (step, now)
        self.leaving = self.leaving or bool(leaving)
        self._all_leave = bool(leaving)
        return bool(due or leaving)

    def _clock_is_due(self) -> bool:
        # Sooner while that costs less than half a percent of the time: a kill in a short run shall not cost all of it.
        waiting = min(self.every_s, max(_SOONEST_S, 200 * self._cost_s))
        return time.monotonic() - self._written_at >= waiting

    def _write(self, trainer: Trainer) -> None:
        self._stopped = bool(trainer.should_stop)
        begun = time.monotonic()
        trainer.save_checkpoint(self.folder / "last.ckpt")
        self._written_at = time.monotonic()
        self._cost_s = self._written_at - begun
        self._owed = False


@contextlib.contextmanager
def leaving_with_a_checkpoint(checkpoints: Checkpoints) -> Iterator[None]:
    """While training, Ctrl-C, SIGTERM or SIGUSR1 ends the run after the step under way, with a checkpoint; a second
    one at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(signum: int, frame: object) -> None:
        interrupts.note(signum)
        if checkpoints.leaving:
            raise KeyboardInterrupt
        checkpoints.leaving = True
        console.say("Stopping after this step, with a checkpoint; once more stops at once.")

    before = {number: signal.signal(number, ask) for number in interrupts.SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if checkpoints.leaving:  # asked during the last epoch's end: training is over and saved, the rest is not done
        raise KeyboardInterrupt


def _correct_epoch_progress(trainer: Trainer, fit_loop: dict[str, Any]) -> None:
    """Count the epochs from the batches.

    After a resume from an epoch's last batch Lightning (2.6) carries the epoch's progress one too low, and the resume
    after that would train up to an epoch more.
    """
    batches = int(trainer.num_training_batches)
    ready = int(trainer.fit_loop.epoch_loop.batch_progress.total.ready)
    if batches <= 0 or ready <= 0:
        return
    epochs = (ready - 1) // batches + 1
    for part in ("total", "current"):
        fit_loop["epoch_progress"][part]["ready"] = epochs
        fit_loop["epoch_progress"][part]["started"] = epochs
