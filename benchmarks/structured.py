"""What structured pruning to a third of the multiply-adds saves in time: `lenet5` and `small_cnn` on MNIST.

For each network and seed one `frugal train` without pruning and one with `pruning=structured pruning.macs=0.33`, as
long, each in a process of its own; accuracy is that of the weights that were written, on all 10,000 test images. The
pruned run has measure=standard, where the dense network takes turns with the smaller one; each backend is compared with
itself, on one thread, by medians, and of the seeds' ratios the median is shown. Beside it the ratio of multiply-adds.

    FRUGAL_DATA_DIR=data python benchmarks/structured.py --seeds 1001 1002 1003
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from whole_runs import train

RESULTS = Path(__file__).parent / "results" / "structured.json"
BACKENDS = ("eager", "torch.compile", "onnxruntime")
PRUNING = ["pruning=structured", "pruning.macs=0.33", "measure=standard"]
MODELS: dict[str, list[str]] = {
    "lenet5": [
        "data=mnist", "model=lenet5", "preprocess=shifts", "preprocess.shift=1", "data.batch_size=128",
        "data.val_fraction=0.0", "optim=nesterov", "optim.lr=0.02", "optim.weight_decay=0.0005", "schedule=one_cycle",
        "trainer.threads=1",
    ],
    "small_cnn": ["experiment=mnist_cnn"],
}  # fmt: skip


def command(model: str, pruned: bool, seed: int, epochs: int) -> list[str]:
    words = [*MODELS[model], f"trainer.max_epochs={epochs}", *(PRUNING if pruned else ["measure=none"])]
    return ["frugal", "train", *words, f"seed={seed}"]


def measure(model: str, seed: int, epochs: int) -> dict[str, Any]:
    """Both runs of a seed: accuracies, what is left, and each backend's times."""
    dense, pruned = (train(command(model, which, seed, epochs)) for which in (False, True))
    figures = pruned["techniques"]["pruning"]
    rows = {(row["backend"], row["batch"]): row["p50_ms"] for row in pruned["latency"]}
    return {
        "seed": seed,
        "load": os.getloadavg()[0],
        "accuracy": pruned["quality"]["test/accuracy"],
        "accuracy_dense": dense["quality"]["test/accuracy"],
        **{name: figures[name] for name in ("units", "parameters", "macs")},
        "ms": [
            {"backend": name, "batch": batch, "dense": rows[name, batch], "pruned": rows[f"{name}, converted", batch]}
            for name in BACKENDS
            for batch in sorted({batch for _, batch in rows})
            if (name, batch) in rows
        ],
    }


def run(
    models: list[str], seeds: list[int], epochs: int, keep: Callable[[dict[str, Any]], None]
) -> dict[str, dict[str, Any]]:
    """The summary, which `keep` also gets after each seed of a model: a run that is cut off leaves what it saw."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    runs: dict[str, list[dict[str, Any]]] = {}
    columns = (TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("", total=len(models) * len(seeds))
        for seed in seeds:
            for model in models:
                progress.update(task, description=f"{model}, seed {seed}")
                runs.setdefault(model, []).append(measure(model, seed, epochs))
                keep(summarize(runs))
                progress.advance(task)
    return summarize(runs)


def summarize(runs: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    summary = {}
    for model, rows in runs.items():
        left = [row["macs"][0] / row["macs"][1] for row in rows]
        faster = []
        for index, first in enumerate(rows[0]["ms"]):
            ratios = [row["ms"][index]["dense"] / row["ms"][index]["pruned"] for row in rows]
            faster.append({"backend": first["backend"], "batch": first["batch"], "times": statistics.median(ratios)})
        summary[model] = {
            "accuracy": statistics.fmean(row["accuracy"] for row in rows),
            "accuracy_dense": statistics.fmean(row["accuracy_dense"] for row in rows),
            "macs_left": statistics.median(left),
            "times_theoretical": 1 / statistics.median(left),
            "times_realized": faster,
            "runs": rows,
        }
    return summary


def show(summary: dict[str, dict[str, Any]], seeds: list[int]) -> None:
    from rich.console import Console
    from rich.table import Table

    batches = sorted({row["batch"] for of in summary.values() for row in of["times_realized"]})
    table = Table(title=f"Structured pruning, MNIST, medians of {len(seeds)} seeds: times faster than dense")
    for column in ("model", "accuracy, dense", "theory", "backend", *(f"batch {batch}" for batch in batches)):
        table.add_column(column, justify="left" if column in ("model", "backend") else "right")
    for model, of in summary.items():
        for backend in BACKENDS:
            times = {row["batch"]: row["times"] for row in of["times_realized"] if row["backend"] == backend}
            table.add_row(
                model,
                f"{100 * of['accuracy']:.2f}, {100 * of['accuracy_dense']:.2f}",
                f"{of['times_theoretical']:.2f}",
                backend,
                *(f"{times[batch]:.2f}" if batch in times else "–" for batch in batches),
            )
    Console(width=120).print(table)


def write(summary: dict[str, dict[str, Any]], seeds: list[int], epochs: int, path: Path) -> None:
    result = {
        "command": f"python benchmarks/structured.py {shlex.join(sys.argv[1:])}".strip(),
        "frugal_commands": {model: shlex.join(command(model, True, seeds[0], epochs)) for model in summary},
        "seeds": seeds,
        "threads": 1,
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "lightning", "torch-pruning", "onnxruntime")},
        "models": summary,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Structured pruning to a third: realized and theoretical speed-up.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1001, 1002, 1003])
    parser.add_argument("--epochs", type=int, default=6, help="of both sides; half way units go")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    summary = run(
        options.models,
        options.seeds,
        options.epochs,
        lambda seen: write(seen, options.seeds, options.epochs, options.output),
    )
    show(summary, options.seeds)
    print(f"written: {options.output}")


if __name__ == "__main__":
    main()
