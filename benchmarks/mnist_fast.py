"""Time to 99.0 % and to 99.4 % on MNIST's test set: `experiment=mnist_fast` and `mnist_accurate` against the plain
small CNN in fp32 (`experiment=mnist_cnn`) after one epoch and after six, run in turn.

Each is `frugal train`, in a process of its own: for every seed one epoch of the plain one, then the fast one, then the
accurate one; for the first seeds (`--rounds`) the plain one's six epochs as well. Ratios are taken within a seed, whose
runs follow each other. Training time is what the run's own record says: the ledger's warmup, train_step, data_wait,
callbacks and compile (start-up, checkpoints, tests and measurements are outside, on all sides); the fit of the first
layer is part of the first step. Accuracy is that of the weights that were written, on all 10,000 test images.

    FRUGAL_DATA_DIR=data python benchmarks/mnist_fast.py --seeds 1001 1002 1003 1004 1005
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from whole_runs import BUCKETS, train, training_seconds

RESULTS = Path(__file__).parent / "results" / "mnist_fast.json"
ONE, SIX, FAST, ACCURATE = "plain, 1 epoch", "plain, 6 epochs", "mnist_fast", "mnist_accurate"
SIDES: dict[str, list[str]] = {
    ONE: ["experiment=mnist_cnn", "trainer.max_epochs=1"],
    SIX: ["experiment=mnist_cnn", "trainer.max_epochs=6"],
    FAST: ["experiment=mnist_fast"],
    ACCURATE: ["experiment=mnist_accurate"],
}
# What a side is compared with, the accuracy that each of its seeds must reach, and how many times faster it must be.
CLAIMS = {FAST: (ONE, 0.990, 4.0), ACCURATE: (SIX, 0.994, 7.0)}


def command(side: str, seed: int, threads: int) -> list[str]:
    return ["frugal", "train", *SIDES[side], f"seed={seed}", f"trainer.threads={threads}", "measure=none"]


def measure(side: str, seed: int, threads: int) -> dict[str, Any]:
    """Run one side in a process of its own and read its record."""
    record = train(command(side, seed, threads))
    return {
        "seed": seed,
        "accuracy": record["quality"]["test/accuracy"],
        "training_s": training_seconds(record),
        "steps": record["run"]["steps_executed"],
        "parameters": record["size"]["parameters"],
        "precision": record["fingerprint"]["precision"],
    }


def run(seeds: list[int], rounds: int, threads: int) -> dict[str, list[dict[str, Any]]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    plan = [
        (side, seed) for i, seed in enumerate(seeds) for side in (ONE, FAST, SIX, ACCURATE) if side != SIX or i < rounds
    ]
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    columns = (TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("", total=len(plan))
        for side, seed in plan:
            progress.update(task, description=f"{side}, seed {seed}")
            runs[side].append(measure(side, seed, threads))
            progress.advance(task)
    return runs


def summarize(runs: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    summary: dict[str, dict[str, Any]] = {}
    for side, rows in runs.items():
        accuracies = [row["accuracy"] for row in rows]
        summary[side] = {
            "accuracy_mean": statistics.fmean(accuracies),
            "accuracy_worst": min(accuracies),
            "training_s": statistics.median(row["training_s"] for row in rows),
            "steps": rows[0]["steps"],
            "parameters": rows[0]["parameters"],
            "precision": rows[0]["precision"],
            "runs": rows,
        }
        if side in CLAIMS:
            other, accuracy, times = CLAIMS[side]
            plain = {row["seed"]: row["training_s"] for row in runs[other]}
            ratios = [plain[row["seed"]] / row["training_s"] for row in rows if row["seed"] in plain]
            summary[side] |= {
                "against": other,
                "times_faster": statistics.median(ratios),
                "times_faster_least": min(ratios),
                "asked": {"accuracy_of_every_seed": accuracy, "times_faster": times},
                "reached": min(accuracies) >= accuracy and statistics.median(ratios) >= times,
            }
    return summary


def show(summary: dict[str, dict[str, Any]], seeds: list[int]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"MNIST, accuracy on the test set of 10,000; {len(seeds)} seeds")
    table.add_column("side", no_wrap=True)
    for column in ("mean", "worst", "runs", "steps", "training s", "times faster", "least"):
        table.add_column(column, justify="right")
    for side, row in summary.items():
        table.add_row(
            side,
            f"{100 * row['accuracy_mean']:.2f}",
            f"{100 * row['accuracy_worst']:.2f}",
            str(len(row["runs"])),
            f"{row['steps']:,}",
            f"{row['training_s']:.2f}",
            *((f"{row['times_faster']:.1f}", f"{row['times_faster_least']:.1f}") if side in CLAIMS else ("", "")),
        )
    Console(width=100).print(table)


def write(summary: dict[str, dict[str, Any]], seeds: list[int], threads: int, path: Path) -> None:
    result = {
        "command": f"python benchmarks/mnist_fast.py {shlex.join(sys.argv[1:])}".strip(),
        "frugal_commands": {side: shlex.join(command(side, seeds[0], threads)) for side in summary},
        "training_s_is": " + ".join(BUCKETS),
        "seeds": seeds,
        "threads": threads,
        "cpus": os.cpu_count(),
        "amx": "amx_bf16" in Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else None,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "lightning", "numpy")},
        "sides": summary,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Time to 99.0 % and 99.4 % on MNIST against a plain small CNN.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1001, 1002, 1003, 1004, 1005])
    parser.add_argument("--rounds", type=int, default=3, help="of the plain one's six epochs, which take a minute each")
    parser.add_argument("--threads", type=int, default=1, help="on all sides; one is disturbed least by other load")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    runs = run(options.seeds, max(1, options.rounds), options.threads)
    summary = summarize(runs)
    show(summary, options.seeds)
    write(summary, options.seeds, options.threads, options.output)
    print(f"written: {options.output}")
    missed = [side for side in CLAIMS if not summary[side]["reached"]]
    if missed:
        raise SystemExit(f"{' and '.join(missed)}: did not reach what is asked, see {options.output}")


if __name__ == "__main__":
    main()
