"""Time to nanoGPT's loss on Tiny Shakespeare: `experiment=shakespeare_fast` against nanoGPT's recipe, run in turn.

Both are `frugal train`, each in a process of its own, A B A B ..., a pair of runs a seed; ratios are taken within
a pair. Training time is what the run's own record says: the ledger's warmup, train_step, data_wait, callbacks and
compile (start-up, checkpoints, tests and measurements are outside, on both sides). The loss is that of the whole last
tenth of the text, in blocks of 64 characters without context across them. A table of counts (`model=ngram`) stands
beside them: the target is weak.

    FRUGAL_DATA_DIR=data python benchmarks/shakespeare.py --seeds 101 102 103
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

TARGET = 1.8982  # nats a character: what nanoGPT's own code reached with this recipe on the whole last tenth
RESULTS = Path(__file__).parent / "results" / "shakespeare.json"
NANOGPT, FAST, NGRAM = "nanogpt_cpu", "shakespeare_fast", "ngram"
SIDES: dict[str, list[str]] = {
    NANOGPT: ["experiment=nanogpt_cpu"],
    FAST: ["experiment=shakespeare_fast"],
    NGRAM: ["data=shakespeare", "model=ngram", "data.val_fraction=0", "tokenizer.unknown=false"],
}


def command(side: str, seed: int, threads: int) -> list[str]:
    return ["frugal", "train", *SIDES[side], f"seed={seed}", f"trainer.threads={threads}", "measure=none"]


def measure(side: str, seed: int, threads: int) -> dict[str, Any]:
    """Run one side in a process of its own and read its record."""
    record = train(command(side, seed, threads))
    return {
        "seed": seed,
        "loss": record["quality"]["test/loss"],
        "training_s": training_seconds(record),
        "steps": record["run"]["steps_executed"],
        "parameters": record["size"]["parameters"],
    }


def run(sides: list[str], seeds: list[int], threads: int) -> dict[str, list[dict[str, Any]]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    columns = (TextColumn("{task.description:20}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("", total=len(seeds) * len(sides))
        for seed in seeds:
            for side in sides:
                progress.update(task, description=f"{side}, seed {seed}")
                runs[side].append(measure(side, seed, threads))
                progress.advance(task)
    return runs


def summarize(runs: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    summary = {}
    for side, rows in runs.items():
        losses = [row["loss"] for row in rows]
        times = [row["training_s"] for row in rows]
        ratios = [own["training_s"] / row["training_s"] for own, row in zip(runs[NANOGPT], rows, strict=True)]
        summary[side] = {
            "loss_mean": statistics.fmean(losses),
            "loss_worst": max(losses),
            "every_seed_reaches_target": max(losses) <= TARGET,
            "training_s": statistics.median(times),
            "times_faster": statistics.median(ratios),
            "times_faster_least": min(ratios),
            "steps": rows[0]["steps"],
            "parameters": rows[0]["parameters"],
            "runs": rows,
        }
    return summary


def show(summary: dict[str, dict[str, Any]], seeds: list[int]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Tiny Shakespeare, whole last tenth in blocks of 64; target {TARGET} nats; {len(seeds)} seeds")
    table.add_column("side", no_wrap=True)
    for column in ("loss, mean", "worst", "steps", "training s", "times faster", "least"):
        table.add_column(column, justify="right")
    for side, row in summary.items():
        table.add_row(
            side,
            f"{row['loss_mean']:.4f}",
            f"{row['loss_worst']:.4f}",
            f"{row['steps']:,}",
            f"{row['training_s']:.2f}",
            f"{row['times_faster']:.1f}",
            f"{row['times_faster_least']:.1f}",
        )
    Console(width=100).print(table)


def write(summary: dict[str, dict[str, Any]], seeds: list[int], threads: int, path: Path) -> None:
    result = {
        "command": f"python benchmarks/shakespeare.py {shlex.join(sys.argv[1:])}".strip(),
        "frugal_commands": {side: shlex.join(command(side, seeds[0], threads)) for side in summary},
        "target": TARGET,
        "training_s_is": " + ".join(BUCKETS),
        "seeds": seeds,
        "threads": threads,
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "lightning", "numpy")},
        "sides": summary,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103])
    parser.add_argument("--threads", type=int, default=1, help="on both sides; one is disturbed least by other load")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    runs = run(list(SIDES), options.seeds, options.threads)
    summary = summarize(runs)
    show(summary, options.seeds)
    write(summary, options.seeds, options.threads, options.output)
    print(f"written: {options.output}")
    if not summary[FAST]["every_seed_reaches_target"]:
        raise SystemExit(f"{FAST}: a seed ended above {TARGET} nats")


if __name__ == "__main__":
    main()
