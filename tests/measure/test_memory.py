"""Peak memory: what is allocated shows, what is mapped does not, and no peak is inherited."""

from __future__ import annotations

import mmap
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from frugal.measure import Memory
from frugal.measure import memory as module

MB = 2**20
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")


class Holds(pl.Callback):
    """Allocates during the first batch, holds it for a while, and lets go."""

    def __init__(self, megabytes: int) -> None:
        self.megabytes = megabytes

    def on_train_batch_start(self, *_: Any) -> None:
        if self.megabytes:
            block = torch.ones(self.megabytes * MB, dtype=torch.uint8)
            time.sleep(0.1)
            self.megabytes = 0
            del block


class Maps(pl.Callback):
    """Reads a whole mapped file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_train_start(self, *_: Any) -> None:
        with open(self.file, "rb") as file:
            self.map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
            for offset in range(0, len(self.map), 4096):
                self.map[offset]
            time.sleep(0.1)

    def on_train_end(self, *_: Any) -> None:
        self.map.close()


def test_a_known_allocation_shows_in_the_private_peak(fit: Callable[..., Any]) -> None:
    meter = Memory(interval_s=0.01)
    fit([meter, Holds(200)], epochs=1)
    figures = meter.figures()
    grown = figures.peak_private_bytes - figures.private_before_bytes
    assert 195 * MB <= grown < 280 * MB
    assert figures.peak_rss_bytes >= figures.rss_before_bytes
    assert figures.gpu_peak_allocated_bytes is None
    assert "CUDA" in meter.absent["memory.gpu_peak_allocated_bytes"]


def test_a_mapped_file_does_not(fit: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "mapped"
    file.write_bytes(bytes(range(256)) * (200 * MB // 256))
    meter = Memory(interval_s=0.01)
    fit([meter, Maps(file)], epochs=1)
    figures = meter.figures()
    assert figures.peak_private_bytes - figures.private_before_bytes < 80 * MB
    assert figures.peak_rss_bytes - figures.rss_before_bytes >= 195 * MB


def test_a_second_run_in_the_process_inherits_no_peak(fit: Callable[..., Any]) -> None:
    first, second = Memory(interval_s=0.01), Memory(interval_s=0.01)
    fit([first, Holds(300)], epochs=1)
    fit([second], epochs=1)
    fit([first], epochs=1)  # nor does the same meter, used again
    assert second.figures().peak_private_bytes < second.figures().private_before_bytes + 100 * MB
    assert first.figures().peak_private_bytes < first.figures().private_before_bytes + 100 * MB
    if module._reset_peak_rss():
        assert second.figures().peak_rss_bytes < second.figures().rss_before_bytes + 100 * MB


def test_workers_count_with_what_they_have_to_themselves(fit: Callable[..., Any]) -> None:
    base = type(fit([], epochs=1, batches=1).module)
    shared = torch.ones(300 * MB, dtype=torch.uint8)  # a fork sees it, and costs nothing for it

    class Allocates(base):  # type: ignore[misc, valid-type]
        def train_dataloader(self) -> Any:
            loader = super().train_dataloader()
            rows = type(loader.dataset)

            class Greedy(rows):  # type: ignore[misc, valid-type]
                def __getitem__(self, indices: Any) -> torch.Tensor:
                    block = torch.ones(100 * MB, dtype=torch.uint8)
                    time.sleep(0.05)
                    del block
                    return super().__getitem__(indices)

            loader.dataset.__class__ = Greedy
            return loader

    meter = Memory(interval_s=0.01)
    fit([meter], epochs=1, batches=6, workers=1, module=Allocates)
    grown = meter.figures().peak_private_bytes - meter.figures().private_before_bytes
    assert 95 * MB <= grown < 250 * MB
    assert shared[-1] == 1


def test_a_resumed_run_has_the_larger_peak_and_the_first_values_before() -> None:
    meter = Memory()
    meter.load_state_dict({"peak_private_bytes": 10 * 2**40, "peak_rss_bytes": 1, "private_before_bytes": 7})
    assert meter.figures().peak_private_bytes == 10 * 2**40
    assert meter.figures().private_before_bytes == 7
    assert meter.state_dict()["peak_private_bytes"] == 10 * 2**40


def test_without_proc_figures_are_absent_with_the_reason(
    fit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_status", lambda pid: {})
    meter = Memory(interval_s=0.01)
    fit([meter], epochs=1)
    assert meter.figures().peak_private_bytes is None
    assert "/proc" in meter.absent["memory.peak_private_bytes"]


def test_the_sampler_ends_with_training_even_after_an_exception(fit: Callable[..., Any]) -> None:
    import threading

    class Fails(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise ValueError("planted")

    with pytest.raises(ValueError, match="planted"):
        fit([Memory(), Fails()])
    assert "frugal-memory" not in {thread.name for thread in threading.enumerate()}
