"""Samples per second of training, and the time until a target metric is reached. Definitions: `docs/measurement.md`."""

from __future__ import annotations

import math
import time
from typing import Any, Literal, cast

import lightning.pytorch as pl
import torch
from torch import Tensor

from frugal import record
from frugal.errors import SettingsError
from frugal.measure.ledger import Ledger
from frugal.measure.meter import Meter, ranks_with_the_same_batch, warmup_of
from frugal.measure.time_ledger import ledger_of

_FEWEST_STEPS = 3  # counted optimizer steps below which a rate says nothing
_FEWEST_WINDOWS = 5  # below which percentiles say nothing
_MOST_FINE_WINDOWS = 32  # windows begin fine, for short runs, and are merged in pairs when there are this many


class Throughput(Meter):
    """Valid samples (and tokens) of all ranks per second of counted optimizer steps.

    What is in a batch is asked of `pl_module.count_batch(batch) -> (samples, tokens | None)` where it has that, else it
    is the first tensor's first dimension. Tokens may be a tensor: it is read at a window's edge. Waiting for data,
    callbacks and logging are inside the counted time, validation, checkpoints and compilation outside. The device is
    synchronized at a window's edge only.

    Args:
        warmup_steps: optimizer steps of each process that are not counted, see `warmup_of`.
        window_s: seconds of a window. Short runs have finer ones, down to a sixteenth of it.
        window_steps: optimizer steps of a window, instead of `window_s`.
    """

    def __init__(self, warmup_steps: int = 10, window_s: float = 0.5, window_steps: int | None = None) -> None:
        super().__init__()
        self.warmup_steps = warmup_steps
        self.window_s = window_s
        self.window_steps = window_steps
        # This rank's last window: for progress bars and step loggers.
        self.last_samples_per_s: float | None = None
        self.last_tokens_per_s: float | None = None
        self._fine_ns = int(window_s * 1e9 / 16)
        self._windows: list[tuple[int, int, int, int]] = []  # steps, samples, tokens, nanoseconds; of this rank
        self._earlier: list[tuple[int, int, int, int]] = []  # those before a resume, of all ranks
        self._samples = 0  # of all batches since training began in this process
        self._tokens: int | Tensor = 0
        # Samples and tokens of all ranks behind the weights that training began with.
        self._trained_earlier: tuple[int, int] = (0, 0)
        # Of this rank: in optimizer steps, and in one that is not yet taken.
        self._trained: tuple[int, int | Tensor] = (0, 0)
        self._untaken: tuple[int, int | Tensor] = (0, 0)
        self._trained_all: tuple[int, int] | None = None  # of all ranks in this process, once training has ended
        self._steps_seen = 0
        self._scale: float | None = 1.0  # samples of all ranks over samples of this one
        self._edge: tuple[int, int, int, int] | None = None  # step, samples, tokens, ns at the open window's start
        self._armed_at: int | None = None
        self._trainer: pl.Trainer | None = None
        self._shared: Any = None  # of several ranks, the data module that knows which batches count

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._trainer = trainer
        self._ledger = ledger_of(trainer)
        self._count_batch = getattr(pl_module, "count_batch", _first_dimension)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._first_step = trainer.global_step
        self._warm_at = self._first_step + warmup_of(trainer, self.warmup_steps)
        self._edge = None
        self._samples = self._tokens = 0
        self._untaken = (0, 0)
        self._trained_all = None
        self._trained_step = self._first_step
        # Armed: the next batch that ends an optimizer step is a window's edge. Only an armed meter asks for the step.
        self._armed_at = self._first_step
        self._next_ns = 0
        self._scale = 1.0 if trainer.world_size == 1 else None
        data = getattr(trainer, "datamodule", None)
        self._shared = data if trainer.world_size > 1 and hasattr(data, "counts") else None
        if self._warm_at == self._first_step:
            self._open(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        samples, tokens = self._count_batch(batch)
        tokens = 0 if tokens is None else tokens
        if self._shared is not None and not self._shared.counts(behind=1):
            samples = tokens = 0  # another rank has the same ones
        self._samples += samples
        self._tokens += tokens
        if self._stepped_with_every_batch(trainer):
            self._trained = self._trained[0] + samples, self._trained[1] + tokens
        else:
            self._count_accumulated(trainer, samples, tokens)
        if self._armed_at is None:
            if self.window_steps is None and time.perf_counter_ns() < self._next_ns:
                return
            self._armed_at = trainer.global_step
            if not self._stepped_with_every_batch(trainer):
                return  # in the middle of an accumulation, perhaps: wait for the next optimizer step
        step = trainer.global_step
        if self._edge is None:
            if step >= self._warm_at:
                self._open(trainer)
        elif self.window_steps is not None:
            if step - self._edge[0] >= self.window_steps:
                self._close(trainer)
        elif step > self._armed_at or self._stepped_with_every_batch(trainer):
            self._close(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._steps_seen = trainer.global_step - self._first_step
        if self._edge is not None and trainer.global_step > self._edge[0]:
            self._close(trainer)
        self._edge = None
        self._trained_all = self._over_ranks(self._trained)
        if trainer.world_size > 1:
            self._scale = self._to_all_ranks()

    def figures(self) -> record.Throughput:
        """Samples of all counted windows over their time; percentiles over windows."""
        self.absent = {}
        windows = self._of_all_ranks()
        steps, samples, tokens, ns = (sum(column) for column in zip(*windows, strict=True)) if windows else (0,) * 4
        figures = record.Throughput(steps_counted=steps)
        if steps < _FEWEST_STEPS or ns == 0:
            reason = f"{steps} optimizer steps after warm-up, at least {_FEWEST_STEPS} are needed"
        elif self._scale is None:
            reason = "training ended before the ranks' counts were summed"
        else:
            reason = None
        if reason is not None or self._scale is None:
            for name in (
                "samples_per_s",
                "samples_per_s_median",
                "samples_per_s_p10",
                "samples_per_s_p90",
                "tokens_per_s",
            ):
                self.absent[f"throughput.{name}"] = str(reason)
            return figures
        figures.samples_per_s = samples / (ns * 1e-9)
        if tokens:
            figures.tokens_per_s = tokens / (ns * 1e-9)
        else:
            self.absent["throughput.tokens_per_s"] = "the batches hold no tokens"
        rates = sorted(window[1] / (window[3] * 1e-9) for window in self._full(windows))
        if len(rates) >= _FEWEST_WINDOWS:
            figures.samples_per_s_median = quantile(rates, 0.5)
            figures.samples_per_s_p10 = quantile(rates, 0.1)
            figures.samples_per_s_p90 = quantile(rates, 0.9)
        else:
            for name in ("median", "p10", "p90"):
                self.absent[f"throughput.samples_per_s_{name}"] = (
                    f"{len(rates)} windows of {self._fine_ns * 1e-9:.2g} s, at least {_FEWEST_WINDOWS} are needed"
                )
        return figures

    @property
    def counted_s(self) -> float:
        """Seconds of the counted optimizer steps."""
        return sum(window[3] for window in (*self._earlier, *self._windows)) * 1e-9

    @property
    def samples_trained(self) -> int:
        """Samples of all ranks behind the weights as they are: warm-up and the parts before a resume included, work
        that a kill took away left out. Before the end of training, this process's part is that of its own rank."""
        return self._behind_the_weights(0)

    @property
    def tokens_trained(self) -> int:
        """Likewise, the tokens; 0 where the batches hold none."""
        return self._behind_the_weights(1)

    def _behind_the_weights(self, which: int) -> int:
        here = self._trained if self._trained_all is None else self._trained_all
        return self._trained_earlier[which] + int(here[which])

    def state_dict(self) -> dict[str, Any]:
        # The open window is left out: it is counted from the next edge after a resume.
        now = self._over_ranks(self._trained)
        scale = self._scale
        if self._trainer is not None and self._trainer.world_size > 1:
            self._scale = self._to_all_ranks()
        windows, self._scale = self._of_all_ranks(), scale
        return {
            "windows": [list(window) for window in windows],
            "fine_ns": self._fine_ns,
            "samples_trained": self._trained_earlier[0] + now[0],
            "tokens_trained": self._trained_earlier[1] + now[1],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._earlier = [(row[0], row[1], row[2], row[3]) for row in state_dict["windows"]]
        self._windows = []
        self._fine_ns = state_dict["fine_ns"]
        self._trained_earlier = state_dict["samples_trained"], state_dict["tokens_trained"]
        self._trained, self._trained_all = (0, 0), None

    def _count_accumulated(self, trainer: pl.Trainer, samples: int, tokens: int | Tensor) -> None:
        """Samples whose gradients no optimizer step took, at a stop in mid-accumulation, trained nothing."""
        self._untaken = self._untaken[0] + samples, self._untaken[1] + tokens
        if trainer.global_step != self._trained_step:
            self._trained_step = trainer.global_step
            self._trained = self._trained[0] + self._untaken[0], self._trained[1] + self._untaken[1]
            self._untaken = (0, 0)

    def _over_ranks(self, own: tuple[int, int | Tensor]) -> tuple[int, int]:
        """The sums over ranks; every rank must call it, as every rank saves a checkpoint."""
        trainer = self._trainer
        here = own[0], int(own[1])
        if trainer is None or trainer.world_size == 1:
            return here
        tensor = torch.tensor(here, dtype=torch.int64, device=trainer.strategy.root_device)
        samples, tokens = cast(Tensor, trainer.strategy.reduce(tensor, reduce_op="sum")).tolist()
        same = ranks_with_the_same_batch(trainer)
        return samples // same, tokens // same

    def _to_all_ranks(self) -> float | None:
        """Samples of all ranks in the windows over those of this one; every rank must call it."""
        own = sum(window[1] for window in self._windows)
        total, _ = self._over_ranks((own, 0))
        return total / own if own else None

    def _of_all_ranks(self) -> list[tuple[int, int, int, int]]:
        """All windows, with the samples and tokens of all ranks."""
        scale = self._scale
        if scale in (None, 1.0):
            return [*self._earlier, *self._windows]
        return [*self._earlier, *((w[0], round(scale * w[1]), round(scale * w[2]), w[3]) for w in self._windows)]

    def _stepped_with_every_batch(self, trainer: pl.Trainer) -> bool:
        return trainer.accumulate_grad_batches == 1

    def _open(self, trainer: pl.Trainer) -> None:
        self._edge = (trainer.global_step, self._samples, int(self._tokens), self._now(trainer))
        self._arm_later()

    def _close(self, trainer: pl.Trainer) -> None:
        assert self._edge is not None
        now = (trainer.global_step, self._samples, int(self._tokens), self._now(trainer))
        window = tuple(new - old for new, old in zip(now, self._edge, strict=True))
        self._edge = now
        self._arm_later()
        if window[3] <= 0:
            return
        self.last_samples_per_s = window[1] / (window[3] * 1e-9)
        self.last_tokens_per_s = window[2] / (window[3] * 1e-9) if window[2] else None
        self._windows.append((window[0], window[1], window[2], window[3]))
        if (
            self.window_steps is None
            and len(self._earlier) + len(self._windows) >= _MOST_FINE_WINDOWS
            and self._fine_ns < self.window_s * 1e9
        ):
            self._earlier, self._windows = _in_pairs(self._earlier), _in_pairs(self._windows)
            self._fine_ns = min(2 * self._fine_ns, int(self.window_s * 1e9))

    def _arm_later(self) -> None:
        self._armed_at = None
        self._next_ns = time.perf_counter_ns() + self._fine_ns

    def _now(self, trainer: pl.Trainer) -> int:
        """The training loop's own clock, with the device caught up; its wait belongs to the steps."""
        with self._ledger.charge("train_step"):
            synchronize(trainer.strategy.root_device)
        return self._ledger.loop_ns()

    def _full(self, windows: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
        """Without those, such as the last, that are less than half as long as the rest: their rates scatter."""
        if self.window_steps is not None:
            return [window for window in windows if window[0] >= self.window_steps]
        return [window for window in windows if window[3] >= 0.5 * self._fine_ns]


class TimeToTarget(Meter):
    """Wall seconds and seconds of training until a validation metric first reaches a target.

    Args:
        metric: a name in `trainer.callback_metrics`, such as `val/accuracy`.
        target: the value to reach.
        mode: `max` where larger is better.
    """

    def __init__(self, metric: str, target: float, mode: Literal["max", "min"] = "max") -> None:
        super().__init__()
        if mode not in ("max", "min"):
            raise SettingsError(f"TimeToTarget.mode is {mode!r}; use max or min")
        self.metric = metric
        self.target = target
        self.mode = mode
        self.wall_s: float | None = None
        self.train_s: float | None = None
        self.step: int | None = None
        self._ledger: Ledger | None = None

    @property
    def state_key(self) -> str:
        return self._generate_state_key(metric=self.metric, target=self.target, mode=self.mode)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._ledger = ledger_of(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        value = trainer.callback_metrics.get(self.metric)
        if self.step is not None or trainer.sanity_checking or value is None or self._ledger is None:
            return
        if float(value) >= self.target if self.mode == "max" else float(value) <= self.target:
            self.wall_s = self._ledger.wall_s()
            self.train_s = self._ledger.fit_s()
            self.step = trainer.global_step

    def figures(self) -> dict[str, float | None]:
        """`to_target_s` is the wall time; `train_s` leaves start-up, validation and checkpoints out."""
        self.absent = {}
        if self.wall_s is None:
            reason = f"{self.metric} never reached {self.target:g}"
            self.absent = {"time.to_target_s": reason, "time.to_target_train_s": reason}
        return {"to_target_s": self.wall_s, "train_s": self.train_s}

    def state_dict(self) -> dict[str, Any]:
        return {"wall_s": self.wall_s, "train_s": self.train_s, "step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.wall_s, self.train_s, self.step = state_dict["wall_s"], state_dict["train_s"], state_dict["step"]


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what was queued; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def quantile(ordered: list[float], q: float) -> float:
    """Linear interpolation between the closest ranks of a sorted list."""
    position = q * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


def _in_pairs(windows: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Each two in a row as one; a last one without another as it is."""
    pairs = [windows[i : i + 2] for i in range(0, len(windows), 2)]
    return [pair[0] if len(pair) == 1 else _merge(*pair) for pair in pairs]


def _merge(one: tuple[int, int, int, int], two: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    return (one[0] + two[0], one[1] + two[1], one[2] + two[2], one[3] + two[3])


def _first_dimension(batch: Any) -> tuple[int, None]:
    """Samples in a batch of unknown make: the length of its first tensor."""
    if isinstance(batch, Tensor):
        return (batch.shape[0] if batch.ndim else 1), None
    values = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, list | tuple) else ()
    for value in values:
        samples, _ = _first_dimension(value)
        if samples:
            return samples, None
    return 0, None
