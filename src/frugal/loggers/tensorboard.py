"""`logger=tensorboard`: curves, settings, ledger and record as an event file in the run's folder.

TensorBoard names a run by its folder, so `tensorboard --logdir logs` shows `<experiment>/<run>`. It keeps single
precision: 24 bits of each figure.
"""

from __future__ import annotations

import functools
import json
import threading
import time
from argparse import Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from frugal.errors import FrugalError
from frugal.loggers.base import QuietLogger, Rows, flatten_record, flatten_settings


class TensorBoard(QuietLogger):
    """Event files in `folder`, the first one begun with the first metric.

    Each row of metrics is in the file when the call returns, so that a kill takes none away. A resumed run begins
    another file, which says from which step on the earlier ones are void: readers show no step twice.
    """

    title: ClassVar[str] = "TensorBoard"

    def __init__(self, folder: str) -> None:
        super().__init__()
        try:
            from torch.utils.tensorboard import SummaryWriter  # noqa: F401
        except ImportError:
            raise FrugalError(
                "logger=tensorboard: TensorBoard is not installed; "
                'install it with: pip install "frugal-ml[tensorboard]"'
            ) from None
        self.folder = folder
        self._writer: Any = None
        self._settings: dict[str, Any] = {}
        self._resumed_at: int | None = None
        self._rows = Rows()

    @property
    def name(self) -> str:
        return Path(self.folder).name

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return self.folder

    @property
    def experiment(self) -> Any:
        """torch's `SummaryWriter`, for images and histograms; None on other ranks than 0, and once it has failed."""
        if self._writer is None and not self._quiet and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            with self._going_quiet(f"{self.folder} cannot be written"):
                self._writer = self._start()
        return None if self._quiet else self._writer

    def resume_at(self, step: int) -> None:
        self._resumed_at, self._rows.last = step, step - 1

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        writer = self.experiment
        if writer is not None:
            with self._going_quiet("a metric cannot be logged"):
                step, new = self._rows.add(metrics, step)
                self._add_scalars(writer, new, step)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        config = vars(params) if isinstance(params, Namespace) else dict(params)
        self._settings |= flatten_settings(config)

    @rank_zero_only
    def log_record(self, record: dict[str, Any]) -> None:
        """The record's figures become scalars at the step after the last; all of it, words too, a table of text."""
        writer = self.experiment
        if writer is None:
            return
        figures, step = flatten_record(record), self._rows.last + 1
        with self._going_quiet("the record cannot be logged"):
            from torch.utils.tensorboard.summary import hparams

            self._add_scalars(writer, {key: value for key, value in figures.items() if _is_number(value)}, step)
            writer.add_text("record", _table(("figure", "value"), figures.items()), step)
            seconds = record.get("time", {}).get("ledger_s", {})
            whole = sum(seconds.values())
            if whole > 0:
                rows = [(bucket, f"{s:.3f}", f"{100 * s / whole:.1f} %") for bucket, s in seconds.items()]
                writer.add_text("ledger", _table(("bucket", "seconds", "share"), rows), step)
            if record.get("status") == "completed":  # readers keep the first end they see: a failed run may go on
                writer.file_writer.add_summary(hparams({}, {})[2], step)
            writer.flush()

    @rank_zero_only
    def close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            with self._going_quiet("the event file cannot be closed"):
                writer.close()
        self._quiet = True

    def _start(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        _say_nothing_of_its_thread()
        if any(Path(self.folder).glob(f"events.out.tfevents.{int(time.time())}.*")):
            time.sleep(1)  # readers take files by their names, in which a second is the smallest part that sorts
        writer = SummaryWriter(log_dir=self.folder, purge_step=self._resumed_at)
        # Without a description of the experiment beside it, TensorBoard gathers settings and figures from all runs.
        values = {key: _setting(value) for key, value in self._settings.items() if value is not None}
        assert writer.file_writer is not None
        writer.file_writer.add_summary(hparams(values, {})[1], 0)
        return writer

    @staticmethod
    def _add_scalars(writer: Any, metrics: Mapping[str, Any], step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        # One event for the whole row: a tenth of what `add_scalar` takes for each of them.
        writer.file_writer.add_summary(
            Summary(value=[Summary.Value(tag=key, simple_value=float(value)) for key, value in metrics.items()]), step
        )
        writer.flush()


@functools.cache  # once a process
def _say_nothing_of_its_thread() -> None:
    """What TensorBoard's thread cannot write it raises on the caller's side, too: that is said in one line there."""
    others = threading.excepthook

    def hook(args: Any) -> None:
        if type(args.thread).__module__ != "tensorboard.summary.writer.event_file_writer":
            others(args)

    threading.excepthook = hook


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _setting(value: Any) -> str | float:
    """The hparams tab knows numbers and text."""
    return value if isinstance(value, str) or _is_number(value) else json.dumps(value)


def _table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """As Markdown, which TensorBoard shows as a table."""
    lines = [head, ["---"] * len(list(head)), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
