"""The file around the coders: its bytes, all kinds of tensors through each coder, and files that nobody wrote."""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Callable

import pytest
import torch
from coded_states import Written, coded, everything, layout, same_bits, sparse_codes
from torch import nn

from frugal.coding import container, dictionary
from frugal.coding.coder import CodingTechnique
from frugal.coding.encoding import Encoding
from frugal.coding.entropy import Entropy
from frugal.coding.huffman import Huffman
from frugal.coding.zstd import Zstd
from frugal.errors import RunError

TECHNIQUES: list[Callable[[], CodingTechnique]] = [Zstd, Huffman, Entropy]
CODERS = list(container.CODERS)
DESCRIPTION = json.dumps({"model": {"network": {"_target_": "mine.Net"}}, "name": "Käse"}, ensure_ascii=False)


def assert_same(found: tuple[dict[str, torch.Tensor], dict[str, Encoding], str], written: Written) -> None:
    state, encodings, description = found
    assert description == DESCRIPTION and list(state) == list(written[0])
    assert [name for name, tensor in written[0].items() if not same_bits(tensor, state[name])] == []
    for name, encoding in written[1].items():
        other = encodings[name]
        assert encoding.waves == other.waves, name
        assert torch.equal(encoding.codes, other.codes) and other.codes.dtype == torch.int32, name
        for one, two in ((encoding.scale, other.scale), (encoding.table, other.table)):
            unused = two is None and not encoding.codes.any()
            assert unused or (one is None and two is None) or same_bits(one, two), name  # type: ignore[arg-type]


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_all_there_is_comes_back_bit_for_bit(technique: Callable[[], CodingTechnique]) -> None:
    written = everything()
    coding = technique()
    assert coding.figures() == {}
    content = coding.encode(*written, DESCRIPTION)
    assert_same(container.read(content), written)
    # what the network says itself is not in the file
    bare = coding.encode(*written, DESCRIPTION, layout(written[0]))
    assert len(bare) < len(content) - 100
    asked: list[str] = []
    assert_same(container.read(bare, lambda text: asked.append(text) or layout(written[0])), written)
    assert asked == [DESCRIPTION]
    assert sum(coding.figures()["bytes"].values()) == len(bare)
    assert coding.encode(*written, DESCRIPTION, layout(written[0])) == bare  # and always the same
    # tied weights are written once, and tied codes have their codes
    assert "tied_codes" in container.read(bare, lambda text: layout(written[0]))[1]
    without = {name: tensor for name, tensor in written[0].items() if name != "tied"}
    assert len(coding.encode(without, written[1], DESCRIPTION, layout(without))) > len(bare) - 8


def test_the_first_bytes() -> None:
    content, parts = container.write("zstd", {}, {}, "{}", {})
    body = bytes([dictionary.LATEST << 1]) + dictionary.deflate(b"{}") + b"\0"
    assert content == b"FRG\x11" + zlib.crc32(b"FRG\x11" + body).to_bytes(4, "big") + body
    assert parts == {"header": 9, "description": len(body) - 2, "tensors": 1, "rest": 0}
    assert container.read(content, lambda text: {}) == ({}, {}, "{}")


def test_a_layout_that_is_not_the_states_is_not_relied_on() -> None:
    network = nn.Linear(3, 2)
    state = {name: tensor.half() for name, tensor in network.state_dict().items()}
    assert container.layout_of(network)["weight"] == ((2, 3), torch.float32)
    content = Entropy().encode(state, {}, "{}", container.layout_of(network))
    found, _, _ = container.read(content, lambda text: container.layout_of(network))
    assert same_bits(found["weight"], state["weight"])


def test_wrong_codes_and_other_tensors_are_not_written() -> None:
    state, encodings = coded({"weight": Encoding(sparse_codes((3, 4), 0.5, 2))})
    with pytest.raises(RunError, match=r"weight: cannot be coded \(the weights are not those"):
        Entropy().encode({"weight": state["weight"] + 1}, encodings, "{}")
    with pytest.raises(RunError, match="other: has codes, but the network has no such parameter"):
        Entropy().encode(state, {"other": encodings["weight"]}, "{}")
    with pytest.raises(RunError, match=r"coding=huffman: odd is torch\.uint16"):
        Huffman().encode({"odd": torch.zeros(2, dtype=torch.uint16)}, {}, "{}")


# ------------------------------------------------------------------------------------------------ files nobody wrote
@pytest.fixture(scope="module", params=CODERS)
def file(request: pytest.FixtureRequest) -> bytes:
    return container.write(request.param, *everything(), DESCRIPTION)[0]


def sealed(content: bytes) -> bytes:
    """With a checksum that agrees: as by somebody who means it."""
    return content[:4] + zlib.crc32(content[:4] + content[8:]).to_bytes(4, "big") + content[8:]


def test_damage_is_one_line(file: bytes) -> None:
    for size in range(0, len(file), 7):
        with pytest.raises(RunError):
            container.read(file[:size])
    for at in range(len(file)):
        with pytest.raises(RunError) as error:
            container.read(file[:at] + bytes([file[at] ^ 1 << at % 8]) + file[at + 1 :])
        assert "\n" not in str(error.value)
    with pytest.raises(RunError, match="its checksum does not agree"):
        container.read(file + b"\0")
    with pytest.raises(RunError, match="does not begin as one"):
        container.read(b"PK\x03\x04" + file)


def test_crafted_files_are_one_line_or_tensors(file: bytes) -> None:
    draw = random.Random(0)
    failed = 0
    for _ in range(150):
        content = bytearray(file)
        for _ in range(draw.randint(1, 4)):
            content[draw.randrange(8, len(content))] = draw.randrange(256)
        if draw.random() < 0.3:
            del content[draw.randrange(9, len(content)) :]
        try:
            state, _, _ = container.read(sealed(bytes(content)))
            assert all(tensor.numel() < 2**26 for tensor in state.values())
        except RunError as error:
            failed += 1
            assert "\n" not in str(error)
    assert failed > 50


@pytest.mark.parametrize("coder", CODERS)
def test_bounds_come_before_memory(coder: str) -> None:
    state, encodings = coded({"weight": Encoding(sparse_codes((8, 8), 0.3, 2))})
    content, _ = container.write(coder, state, encodings, "{}", layout(state))
    with pytest.raises(RunError, match="too small for its network"):
        container.read(content, lambda text: {"weight": ((2**20, 2**20), torch.float32)})
    with pytest.raises(RunError, match="damaged"):  # more than was written: no end is found
        container.read(content, lambda text: {f"{k}": ((8, 8), torch.float32) for k in range(99)})
    with pytest.raises(RunError, match="does not say what its tensors are"):
        container.read(content)
    with pytest.raises(RunError, match="no network of ours"):
        container.read(content, no_network)


def no_network(text: str) -> container.Layout:
    raise RunError("no network of ours")


def test_other_versions() -> None:
    content, _ = container.write("zstd", {}, {}, "{}", {})
    with pytest.raises(RunError, match=r"another version of Frugal \(format 2, coder 1\)"):
        container.read(sealed(content[:3] + b"\x21" + content[4:]))
    with pytest.raises(RunError, match=r"format 1, coder 9"):
        container.read(sealed(content[:3] + b"\x19" + content[4:]))
    with pytest.raises(RunError, match="there is no dictionary 7"):
        container.read(sealed(content[:8] + b"\x0e" + content[9:]))
