"""Training throughput on MNIST: `frugal train experiment=article` against the article's own loop, measured in turn.

The article trains a 784-256-128-10 perceptron (SGD 0.01, momentum 0.9, batch 64) from torchvision's MNIST: each sample
becomes a PIL image, then a tensor, then a normalized tensor, in Python; the loss is read by `.item()` at each step.
torchvision is not needed here: its steps are rebuilt below. Plain Lightning and a bare PyTorch loop over tensors in
memory stand beside it. Each side runs one epoch in a process of its own, A B C A B C ..., and ratios are taken within
a round. Samples/s leave out the first ten steps on every side, worker start-up with them.

    FRUGAL_DATA_DIR=data python benchmarks/article.py --rounds 5
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

BATCH = 64
WARMUP_STEPS = 10
MEAN, STD = 0.1307, 0.3081
RESULTS = Path(__file__).parent / "results" / "article.json"
FRUGAL_OVERRIDES = ["experiment=article", "trainer.max_epochs=1", "measure=none"]


class Rate:
    """Samples per second of an epoch without its first steps."""

    def __init__(self) -> None:
        self.steps = self.samples = 0
        self.start = 0.0

    def step(self, samples: int) -> None:
        self.steps += 1
        if self.steps == WARMUP_STEPS:
            self.start = time.perf_counter()
        elif self.steps > WARMUP_STEPS:
            self.samples += samples

    def per_second(self) -> float:
        return self.samples / (time.perf_counter() - self.start)


def load_mnist() -> tuple[Any, Any]:
    """Images (60000, 28, 28) uint8 and labels (60000,) int64 as tensors."""
    import torch

    from frugal.data.mnist import MNIST

    source = MNIST(os.environ.get("FRUGAL_DATA_DIR", "data"))
    source.prepare()
    train = source.load()["train"]
    return torch.from_numpy(train.x[:, 0].copy()), torch.from_numpy(train.y.copy())


def perceptron() -> Any:
    from torch import nn

    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def article(workers: int, threads: int | None = None) -> float:
    """The article's loop: torchvision's MNIST, ToTensor and Normalize, then a DataLoader."""
    import numpy as np
    import torch
    from PIL import Image
    from torch import nn
    from torch.utils.data import DataLoader, Dataset

    class PILDataset(Dataset[Any]):
        def __init__(self) -> None:
            self.data, self.targets = load_mnist()

        def __len__(self) -> int:
            return len(self.data)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            image = Image.fromarray(self.data[index].numpy())
            # torchvision.transforms.functional.to_tensor
            array = np.array(image, np.uint8, copy=True)
            tensor = torch.from_numpy(array).view(image.size[1], image.size[0], 1).permute(2, 0, 1).contiguous()
            tensor = tensor.to(dtype=torch.get_default_dtype()).div(255)
            # torchvision.transforms.functional.normalize
            tensor = tensor.clone()
            mean = torch.as_tensor([MEAN], dtype=tensor.dtype)
            std = torch.as_tensor([STD], dtype=tensor.dtype)
            if (std == 0).any():
                raise ValueError("std is zero")
            tensor.sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1))
            return tensor, int(self.targets[index])

    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = perceptron()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    rate, running = Rate(), 0.0
    for x, y in DataLoader(PILDataset(), batch_size=BATCH, shuffle=True, num_workers=workers):
        optimizer.zero_grad()
        loss = criterion(network(x), y)
        loss.backward()
        optimizer.step()
        running += loss.item()
        rate.step(len(y))
    return rate.per_second()


def normalized() -> tuple[Any, Any]:
    x, y = load_mnist()
    return x.unsqueeze(1).float().div_(255).sub_(MEAN).div_(STD), y


def bare(threads: int | None = None) -> float:
    """PyTorch alone: normalized tensors in memory, a batch gathered at once, fused SGD, nothing read or kept."""
    import torch
    from torch.nn import functional as F

    if threads is not None:
        torch.set_num_threads(threads)
    x, y = normalized()
    torch.manual_seed(0)
    network = perceptron()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, fused=True)
    rate = Rate()

    def batches() -> Iterator[tuple[Any, Any]]:
        for chosen in torch.randperm(len(x)).split(BATCH):
            yield x[chosen], y[chosen]

    for inputs, labels in batches():
        optimizer.zero_grad()
        F.cross_entropy(network(inputs), labels).backward()
        optimizer.step()
        rate.step(len(labels))
    return rate.per_second()


def lightning_defaults() -> float:
    """Lightning as its tutorials have it: tensors in memory, DataLoader, default Trainer, the loss logged each step."""
    import torch
    from lightning.pytorch import Callback, LightningModule, Trainer
    from torch.nn import functional as F
    from torch.utils.data import DataLoader, TensorDataset

    rate = Rate()

    class Plain(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = perceptron()

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            x, y = batch
            loss = F.cross_entropy(self.network(x), y)
            self.log("train/loss", loss, prog_bar=True)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)

    class Count(Callback):
        per_second = 0.0

        def on_train_batch_end(self, trainer: Trainer, module: LightningModule, out: Any, batch: Any, i: int) -> None:
            rate.step(len(batch[1]))
            if i + 1 == trainer.num_training_batches:
                self.per_second = rate.per_second()

    torch.manual_seed(0)
    loader = DataLoader(TensorDataset(*normalized()), batch_size=BATCH, shuffle=True)
    count = Count()
    with tempfile.TemporaryDirectory() as folder:
        Trainer(max_epochs=1, accelerator="cpu", default_root_dir=folder, callbacks=[count]).fit(Plain(), loader)
    return count.per_second


SIDES: dict[str, Callable[[], float]] = {
    # Torch's own number of threads, as the article has it, competes with its workers for the cores; one does not.
    "article, 2 workers": lambda: article(2),
    "article, 2 workers, 1 thread": lambda: article(2, threads=1),
    "article, 0 workers": lambda: article(0),
    "plain Lightning": lightning_defaults,
    "bare PyTorch": bare,
    "bare PyTorch, 1 thread": lambda: bare(threads=1),
}
REFERENCE = "article, 2 workers"
FRUGAL = "frugal"


def measure(side: str) -> float:
    """Samples/s of one epoch of a side, in a process of its own."""
    if side == FRUGAL:
        return measure_frugal()
    command = [sys.executable, str(Path(__file__)), "--side", side]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{side} failed: {last_line(done.stderr)}")
    return float(last_line(done.stdout))


def measure_frugal() -> float:
    """Samples/s as the run's own record says."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            frugal_command(), capture_output=True, text=True, check=False, env={**os.environ, "FRUGAL_LOG_DIR": folder}
        )
        records = sorted(Path(folder).glob("**/record.json"))
        if done.returncode != 0 or len(records) != 1:
            raise SystemExit(f"{shlex.join(frugal_command())} failed: {last_line(done.stderr or done.stdout)}")
        rate = json.loads(records[0].read_text())["throughput"]["samples_per_s"]
    if rate is None:
        raise SystemExit("the run's record has no throughput.samples_per_s")
    return float(rate)


def frugal_command() -> list[str]:
    return [sys.executable, "-m", "frugal", "train", *FRUGAL_OVERRIDES]


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1]


def ratios(rates: dict[str, list[float]], side: str, reference: str) -> list[float]:
    """Round by round, so that a load that lasts a round falls on both."""
    return [a / b for a, b in zip(rates[side], rates[reference], strict=True)]


def run(sides: Iterable[str], rounds: int) -> dict[str, list[float]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    sides = list(sides)
    rates: dict[str, list[float]] = {side: [] for side in sides}
    columns = (TextColumn("{task.description:20}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("", total=rounds * len(sides))
        for _ in range(rounds):
            for side in sides:
                progress.update(task, description=side)
                rates[side].append(measure(side))
                progress.advance(task)
    return rates


def summarize(rates: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    summary = {}
    for side, values in rates.items():
        against = {f"times {name}": ratios(rates, side, name) for name in SIDES if name in rates and "article" in name}
        summary[side] = {
            "samples_per_s": statistics.median(values),
            "rounds": values,
            **{name: statistics.median(of) for name, of in against.items()},
        }
    return summary


def show(summary: dict[str, dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    columns = [key for key in next(iter(summary.values())) if key.startswith("times")]
    table = Table(title="MNIST, 784-256-128-10, batch 64: medians over rounds")
    table.add_column("side")
    for column in ["samples/s", *columns]:
        table.add_column(column, justify="right")
    for side, row in summary.items():
        table.add_row(side, f"{row['samples_per_s']:,.0f}", *(f"{row[column]:.2f}" for column in columns))
    Console().print(table)


def write(summary: dict[str, dict[str, Any]], rounds: int, path: Path) -> None:
    import torch

    result = {
        "command": f"python benchmarks/article.py {shlex.join(sys.argv[1:])}".strip(),
        "frugal_command": shlex.join(["frugal", *frugal_command()[3:]]),
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "lightning", "numpy", "pillow")},
        "sides": summary,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--without-frugal", action="store_true", help="the other sides only; nothing is written")
    parser.add_argument("--side", choices=list(SIDES), help="measure one side in this process and print its samples/s")
    options = parser.parse_args()
    if options.side:
        print(SIDES[options.side]())
        return
    sides = list(SIDES) if options.without_frugal else [FRUGAL, *SIDES]
    rates = run(sides, options.rounds)
    summary = summarize(rates)
    show(summary)
    if not options.without_frugal:
        write(summary, options.rounds, options.output)
        print(f"written: {options.output}")


if __name__ == "__main__":
    main()
