"""Descriptions in a few bytes, and dictionaries that stay what they are."""

from __future__ import annotations

import hashlib
import json

import pytest

from frugal.coding import dictionary

# Of a file that was once shipped: files written with it need it as it is.
SHA256 = {1: "239266fce089bb2a47cd298ba3f387724b010dc759a6f9c29c98df56f48f9dc7"}


def test_a_dictionary_never_changes() -> None:
    digests = {number: hashlib.sha256(dictionary.of(number)).hexdigest() for number in SHA256}
    assert digests == SHA256 and max(SHA256) == dictionary.LATEST


def test_there_and_back() -> None:
    for text in (b"", b"{}", "Käse".encode(), b"x" * 5000):
        assert dictionary.inflate(dictionary.deflate(text) + b"rest", dictionary.LATEST, 5000) == (text, b"rest")
    with pytest.raises(ValueError, match="does not end"):
        dictionary.inflate(dictionary.deflate(b"x" * 5000), dictionary.LATEST, 4999)
    with pytest.raises(ValueError, match="no dictionary 0"):
        dictionary.inflate(b"", 0, 1)


def test_built_from_the_options() -> None:
    """And the latest still serves for the options as they are: else it is time for the next."""
    lines = [json.loads(line) for line in dictionary.build(dictionary.LIKELY[-3:]).decode().split("\n")]
    assert [line["model"]["network"]["_target_"].rpartition(".")[2] for line in lines[-2:]] == ["LeNet5", "LeNet300100"]
    description = lines[-1]
    assert len(dictionary.deflate(json.dumps(description, sort_keys=True).encode())) <= 40
    description["data"]["batch_size"], description["preprocess"]["shift"] = 100, 2
    description["state"]["preprocess"] = {"mean": [33.31842144982993], "std": [78.56748998339798]}
    description["shapes"] = {"layers.1": [37, 784], "layers.3": [25, 37], "layers.5": [10, 25]}
    assert len(dictionary.deflate(json.dumps(description, sort_keys=True).encode())) <= 120
