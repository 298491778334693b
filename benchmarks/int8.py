"""int8 through ONNX Runtime against the same network in eager fp32: `quantization=static_int8` on trained LeNets, and
both int8 options on a small GPT.

Each network is trained by `frugal train` for a few epochs and then, by its weights, quantized, coded and exported in
runs of their own. Latency is that of a call with a torch tensor in and out, `measure=standard`: two seconds for each
backend and batch size, the dense network and the file in turn. Errors are of the weights that were written, on all of
the test set, which is looked at once for each. Sizes are whole files; the dense form is a safetensors file of fp32.

What is asked is asked of the LeNets. A GPT gains little at large batches, loses quality by `static_int8`, and generates
text more slowly: an ONNX file keeps no cache of keys and values.

    FRUGAL_DATA_DIR=data python benchmarks/int8.py --seed 1001
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import frugal
from frugal.record import Record

RESULTS = Path(__file__).parent / "results" / "int8.json"
BATCHES = [1, 64]
IMAGES = {
    "lenet_300_100": ["data=mnist", "model=lenet_300_100", "trainer.max_epochs=3"],
    "lenet5": ["data=mnist", "model=lenet5", "trainer.max_epochs=2"],
}
TEXT = {"gpt": ["experiment=nanogpt_cpu", "trainer.max_steps=300"]}
ASKED = {"times_faster": 3.0, "times_smaller": 4.0, "more_errors_of_10000": 10}


class Runs:
    """Runs of one network below `folder`, the first one trained, the others from its weights."""

    def __init__(self, words: list[str], seed: int, threads: int, folder: Path) -> None:
        self.words = [*words, f"seed={seed}", f"trainer.threads={threads}", f"paths.log_dir={folder}", "logger=none"]
        self.dense = frugal.run([*self.words, "measure=none"])
        self.source = folder / self.dense.run.experiment / self.dense.run.name

    def after(self, *words: str, timed: bool = False) -> Record:
        kept = [word for word in self.words if not word.startswith(("trainer.max_epochs", "trainer.max_steps"))]
        level = ["measure=standard", f"measure.batches={BATCHES}"] if timed else ["measure=none"]
        start = [f"model.init_from={self.source}", "trainer.max_epochs=0", "trainer.max_steps=-1"]
        return frugal.run([*kept, *start, *level, *words])


def latencies(record: Record) -> dict[str, dict[str, float]]:
    """p50 in milliseconds by backend and batch size; a language model's ways of generating are left out."""
    found: dict[str, dict[str, float]] = {}
    for row in record.latency:
        if row.backend in ("eager", "torch.compile") or row.backend.startswith("onnxruntime"):
            found.setdefault(row.backend, {})[str(row.batch)] = row.p50_ms
    return found


def faster(times: dict[str, dict[str, float]]) -> dict[str, float]:
    return {size: times["eager"][size] / times["onnxruntime int8"][size] for size in times["eager"]}


def images(words: list[str], seed: int, threads: int, folder: Path) -> dict[str, Any]:
    runs = Runs(words, seed, threads, folder)
    int8 = runs.after("quantization=static_int8", timed=True)
    coded = runs.after("quantization=static_int8", "coding=zstd")
    onnx = runs.after("deploy=onnx")
    times = latencies(int8)
    errors = [round((1 - record.quality["test/accuracy"]) * 10_000) for record in (runs.dense, int8, coded)]
    sizes = {
        "dense fp32, safetensors": size(runs.dense),
        "dense fp32, ONNX": size(onnx),
        "int8, ONNX": size(int8),
        "int8, ONNX, coding=zstd": size(coded),
    }
    smaller = {
        "ONNX over ONNX": sizes["dense fp32, ONNX"] / sizes["int8, ONNX"],
        "coded": sizes["dense fp32, safetensors"] / sizes["int8, ONNX, coding=zstd"],
    }
    reached = (
        min(faster(times).values()) >= ASKED["times_faster"]
        and smaller["coded"] >= ASKED["times_smaller"]
        and errors[1] - errors[0] <= ASKED["more_errors_of_10000"]
    )
    return {
        "errors_of_10000": dict(zip(("fp32", "int8", "int8, coded"), errors, strict=True)),
        "bytes": sizes,
        "times_smaller": smaller,
        "p50_ms": times,
        "times_faster_than_eager": faster(times),
        "reached": reached,
    }


def text(words: list[str], seed: int, threads: int, folder: Path) -> dict[str, Any]:
    runs = Runs(words, seed, threads, folder)
    found: dict[str, Any] = {"loss_fp32": loss(runs.dense), "bytes_fp32": size(runs.dense)}
    for option in ("dynamic_int8", "static_int8"):
        record = runs.after(f"quantization={option}", timed=True)
        times = latencies(record)
        found[option] = {
            "loss": loss(record),
            "bytes": size(record),
            "p50_ms": times,
            "times_faster_than_eager": faster(times),
            "times_faster_than_onnxruntime_fp32": {
                key: times["onnxruntime"][key] / times["onnxruntime int8"][key] for key in times.get("onnxruntime", {})
            },
        }
    return found


def size(record: Record) -> int:
    assert record.size.file_bytes is not None
    return record.size.file_bytes


def loss(record: Record) -> float:
    return record.quality["test/loss"]


def show(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="int8 by ONNX Runtime against eager fp32, p50")
    for column in ("network", "batch", "eager ms", "int8 ms", "times faster", "smaller", "coded", "quality"):
        table.add_column(column, justify="left" if column == "network" else "right")
    for name, row in found.items():
        for option in ("static_int8", "dynamic_int8") if name in TEXT else ("static_int8",):
            part = row[option] if name in TEXT else row
            if name in TEXT:
                smaller, coded = row["bytes_fp32"] / part["bytes"], None
                quality = f"{row['loss_fp32']:.4f} to {part['loss']:.4f} nats"
            else:
                smaller, coded = row["times_smaller"]["ONNX over ONNX"], row["times_smaller"]["coded"]
                errors = row["errors_of_10000"]
                quality = f"{errors['fp32']} to {errors['int8']} errors"
            for batch, ratio in part["times_faster_than_eager"].items():
                table.add_row(
                    f"{name}, {option}",
                    batch,
                    *(f"{part['p50_ms'][backend][batch]:.4f}" for backend in ("eager", "onnxruntime int8")),
                    f"{ratio:.2f}",
                    f"{smaller:.2f}",
                    f"{coded:.2f}" if coded else "",
                    quality,
                )
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description="int8 by ONNX Runtime against eager fp32, on a CPU.")
    parser.add_argument("--seed", type=int, default=1001)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=[*IMAGES, *TEXT], default=[*IMAGES, *TEXT])
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only:
            measure, words = (text, TEXT[name]) if name in TEXT else (images, IMAGES[name])
            found[name] = measure(words, options.seed, options.threads, Path(folder))
    show(found)
    for row in found.values():
        row |= {
            "command": f"python benchmarks/int8.py {shlex.join(sys.argv[1:])}".strip(),
            "seed": options.seed,
            "threads": options.threads,
        }
    kept = json.loads(options.output.read_text())["networks"] if options.output.exists() else {}
    result = {
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "onnx", "onnxruntime")},
        "asked": ASKED,
        "networks": kept | found,  # what --only left out stays as it was measured
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {options.output}")
    missed = [name for name, row in found.items() if row.get("reached") is False]
    if missed:
        raise SystemExit(f"{' and '.join(missed)}: did not reach what is asked, see {options.output}")


if __name__ == "__main__":
    main()
