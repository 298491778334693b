"""What descriptions have in common, so that a file need not say it: the dictionaries of their compression.

A dictionary is fixed for good once a file was written with it: files name theirs by number. `build` makes one of the
options as they are shipped; `python -m frugal.coding.dictionary` writes it as the next.
"""

from __future__ import annotations

import functools
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

LATEST = 1
# What is not in the option files: dimensions, and what was learnt of the data with the settings as they are shipped.
IMAGES = {"classes": 10, "input_shape": [1, 28, 28]}
DIGITS = {"preprocess": {"mean": [57.16651009402221], "std": [89.03362338321044]}}
MNIST = {"preprocess": {"mean": [33.32293183106576], "std": [78.57248697483612]}}
COLOUR = {"preprocess": {"mean": [125.0, 123.0, 114.0], "std": [63.0, 62.0, 66.0]}}
TABLE = {"preprocess": {"mean": [0.0], "std": [1.0], "target_mean": 152.0, "target_std": 77.0}}
TEXT: dict[str, Any] = {"preprocess": {}, "tokenizer": {"vocabulary": []}}
Likely = tuple[str, str, dict[str, Any], dict[str, Any]]  # data, model, dims, state
LIKELY: list[Likely] = [
    ("sst2", "bag_of_ngrams", {"classes": 2, "max_length": 64, "vocabulary": 10000}, TEXT),
    ("sst2", "text_encoder", {"classes": 2, "max_length": 64, "vocabulary": 10000}, TEXT),
    ("shakespeare", "gpt", {"block_size": 64, "separator": None, "vocabulary": 65}, TEXT),
    ("shakespeare", "gpt_mini", {"block_size": 64, "separator": None, "vocabulary": 65}, TEXT),
    ("california_housing", "mlp", {"input_shape": [8], "outputs": 1}, TABLE),
    ("diabetes", "linear", {"input_shape": [10], "outputs": 1}, TABLE),
    ("cifar10", "resnet20", {"classes": 10, "input_shape": [3, 32, 32]}, COLOUR),
    ("fashion_mnist", "lenet5", IMAGES, {"preprocess": {"mean": [72.0], "std": [90.0]}}),
    ("digits", "simple_net", IMAGES, DIGITS),
    ("digits", "lenet5", IMAGES, DIGITS),
    ("digits", "lenet_300_100", IMAGES, DIGITS),
    ("mnist", "simple_net", IMAGES, MNIST),
    ("mnist", "lenet5", IMAGES, MNIST),
    ("mnist", "lenet_300_100", IMAGES, MNIST),
]
WINDOW = 32768  # deflate looks no further back


@functools.cache
def of(number: int) -> bytes:
    """Raises ValueError for a number that this version does not have."""
    path = Path(__file__).with_name(f"dictionary_{number}.txt")
    if not 0 < number <= LATEST:
        raise ValueError(f"there is no dictionary {number}")
    return path.read_bytes()


def deflate(text: bytes) -> bytes:
    """In the way that comes out shortest."""
    found = []
    for strategy in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_FIXED):
        packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, strategy, of(LATEST))
        found.append(packer.compress(text) + packer.flush())
    return min(found, key=len)


def inflate(content: bytes, number: int, most: int) -> tuple[bytes, bytes]:
    """The text at the beginning of `content`, and what follows it. Raises ValueError for more than `most` bytes."""
    unpacker = zlib.decompressobj(-15, of(number))
    text = unpacker.decompress(content, most)
    if not unpacker.eof:
        raise ValueError("its description does not end")
    return text, unpacker.unused_data


def build(likely: Sequence[Likely] = ()) -> bytes:
    """Descriptions as runs write them, one a line: of each shipped pair that is likely, the likeliest last, where a
    reference to it is shortest. Needs a checkout."""
    from frugal.build import describe
    from frugal.compose import compose
    from frugal.settings import resolve

    lines = []
    for data, model, dims, state in likely or LIKELY:
        cfg, _ = compose("train", [f"data={data}", f"model={model}"])
        source: Any = resolve(cfg.data.source["_target_"], "data.source")
        stand_in: Any = SimpleNamespace(source=source, dims=dims.copy, state_dict=state.copy)
        lines.append(json.dumps(describe(cfg, stand_in).to_dict(), sort_keys=True))
    return "\n".join(lines).encode()[-WINDOW:]


if __name__ == "__main__":
    path = Path(__file__).with_name(f"dictionary_{LATEST + 1}.txt")
    path.write_bytes(build())
    print(f"{path.name}: {path.stat().st_size} bytes; set LATEST to {LATEST + 1} to use it")
