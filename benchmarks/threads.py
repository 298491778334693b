"""What a second thread brings to a small training step, on a quiet and on a busy machine.

    python benchmarks/threads.py

Trains the article's perceptron on random images with one and with two threads in turn, alone and beside as many busy
processes as there are cores, and prints samples per second (median of the rounds) and the ratio of two to one.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 5


def side(threads: int, seconds: float = 2.0) -> float:
    """Samples per second of the bare loop."""
    import torch
    from torch import nn

    torch.set_num_threads(threads)
    x, y = torch.randn(64, 784), torch.randint(0, 10, (64,))
    network = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, fused=True)
    steps, until = 0, time.perf_counter() + seconds
    begun = time.perf_counter()
    while time.perf_counter() < until:
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
    return 64 * steps / (time.perf_counter() - begun)


def spin(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def measure(busy: bool) -> dict[str, float]:
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(ROUNDS):
        for threads, taken in rates.items():
            load = [multiprocessing.Process(target=spin, args=(8,)) for _ in range(os.cpu_count() or 1) if busy]
            for process in load:
                process.start()
            done = subprocess.run(
                [sys.executable, __file__, str(threads)], capture_output=True, text=True, check=True, timeout=120
            )
            for process in load:
                process.terminate()
                process.join()
            taken.append(float(done.stdout))
    one, two = statistics.median(rates[1]), statistics.median(rates[2])
    ratio = statistics.median(b / a for a, b in zip(rates[1], rates[2], strict=True))
    return {"one_thread": round(one), "two_threads": round(two), "two_over_one": round(ratio, 2)}


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(side(int(sys.argv[1])))
    else:
        result = {"quiet": measure(False), "busy": measure(True)}
        for name, row in result.items():
            print(name, row)
        path = Path(__file__).parent / "results" / "threads.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")
