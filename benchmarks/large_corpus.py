"""A corpus larger than memory: what encoding it and training on it cost in time and in private memory.

    python benchmarks/large_corpus.py --gigabytes 4

Writes a text file of that size into a temporary folder and encodes it as bytes in a process of its own, whose private
memory (RssAnon) is looked at all the time. Then trains on it through `frugal train` for a few hundred steps, encoding
included, and reads the peak of private memory during training from the run's own `record.json`
(`docs/measurement.md` has the definition). Everything but `results/large_corpus.json` is taken away again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

LIMIT_BYTES = 1e9  # of private memory, which the whole run has to stay under
STEPS = 200
WORDS = 20_000
LINES = 200_000  # different ones, drawn with replacement

ENCODE = """
import json, sys, threading, time
from pathlib import Path
from frugal.data.cleaning import Cleaning
from frugal.data.corpus import open_corpus
from frugal.data.text_file import TextFile
from frugal.tokenizer.bytes import Bytes

peak = 0

def look():
    global peak
    while True:
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = max(peak, *(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")))
        time.sleep(0.01)

threading.Thread(target=look, daemon=True).start()
source = TextFile(sys.argv[1])
source.sha256()  # reads the file once: no part of the encoding
begun = time.perf_counter()
corpus = open_corpus(source, Cleaning(), Bytes(), Path(sys.argv[2]), val_fraction=0.01)
print(json.dumps([time.perf_counter() - begun, peak]))
"""


def write_text(path: Path, size: int) -> None:
    """`size` bytes of lines of words from a Zipf distribution, the same at each call."""
    draw = np.random.Generator(np.random.PCG64(0))
    letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz", dtype=np.uint8)
    words = [letters[draw.integers(0, 26, draw.integers(2, 10))].tobytes() for _ in range(WORDS)]
    picked = np.minimum(draw.zipf(1.2, (LINES, 12)), WORDS) - 1
    lines = [b" ".join(words[i] for i in line) + b"\n" for line in picked.tolist()]
    with open(path, "wb") as file:
        while size > 0:
            text = b"".join(lines[i] for i in draw.integers(0, LINES, LINES).tolist())[:size]
            file.write(text)
            size -= len(text)


def train(text: Path, folder: Path) -> dict[str, object]:
    """The record of a short training on `text`."""
    words = [
        "data=text_file", f"data.source.path={text}", "tokenizer=bytes", "model=gpt", "data.val_fraction=0.001",
        "data.source.test_fraction=0.001", f"trainer.max_steps={STEPS}", "trainer.limit_val_batches=20",
        "trainer.limit_test_batches=20", "trainer.threads=1", "measure=none",
    ]  # fmt: skip
    environment = {**os.environ, "FRUGAL_LOG_DIR": str(folder / "logs")}
    environment.pop("FRUGAL_CACHE_DIR", None)
    subprocess.run([sys.executable, "-m", "frugal", "train", *words], check=True, env=environment)
    (record,) = (folder / "logs" / "default").glob("*/record.json")
    return json.loads(record.read_text())


def encode(text: Path, folder: Path) -> tuple[float, int]:
    """Seconds to encode `text` in a process of its own, and the peak of its private bytes."""
    done = subprocess.run(
        [sys.executable, "-c", ENCODE, str(text), str(folder)], check=True, capture_output=True, text=True
    )
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--folder", type=Path, default=None, help="where the temporary folder is made")
    arguments = parser.parse_args()
    size = int(arguments.gigabytes * 1e9)
    folder = Path(tempfile.mkdtemp(prefix="frugal-large-", dir=arguments.folder))
    try:
        text = folder / "large.txt"
        begun = time.perf_counter()
        write_text(text, size)
        print(f"wrote {size / 1e9:.1f} GB in {time.perf_counter() - begun:.0f} s", flush=True)
        seconds, encode_peak = encode(text, folder / "alone")
        print(f"encoded in {seconds:.1f} s, {size / 1e6 / seconds:.0f} MB/s", flush=True)
        shutil.rmtree(folder / "alone")
        record = train(text, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    memory, fingerprint = record["memory"], record["fingerprint"]
    result = {
        "command": f"python benchmarks/large_corpus.py --gigabytes {arguments.gigabytes:g}",
        "bytes": size,
        "encode_s": round(seconds, 1),
        "encode_mb_per_s": round(size / 1e6 / seconds, 1),
        "encode_peak_private_bytes": encode_peak,
        "peak_private_bytes": memory["peak_private_bytes"],
        "private_before_bytes": memory["private_before_bytes"],
        "peak_rss_bytes": memory["peak_rss_bytes"],
        "steps": record["run"]["steps_executed"],
        "tokens_per_s": record["throughput"]["tokens_per_s"],
        "startup_s": record["time"]["ledger_s"]["startup"],
        "threads": fingerprint["threads"],
        "torch": fingerprint["torch"],
        "python": platform.python_version(),
    }
    print(json.dumps(result, indent=1))
    path = Path(__file__).parent / "results" / "large_corpus.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    peak = max(encode_peak, memory["peak_private_bytes"])
    if peak >= LIMIT_BYTES:
        sys.exit(f"{peak / 1e9:.2f} GB of private memory: not under {LIMIT_BYTES / 1e9:g} GB")


if __name__ == "__main__":
    main()
