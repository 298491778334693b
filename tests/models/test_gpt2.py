"""GPT-2 files: logits are those of `transformers`, and other files are told apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from frugal.errors import RunError
from frugal.models.gpt import GPT
from frugal.models.gpt2 import convert, is_gpt2

OWN = {
    "vocabulary": 101,
    "block_size": 32,
    "layers": 2,
    "heads": 4,
    "width": 48,
    "activation": "gelu_tanh",
    "bias": True,
}


def random_gpt2(folder: Path) -> tuple[Any, Path]:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=2, n_embd=48, n_head=4, vocab_size=101, n_positions=32)
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():  # so large that a weight in the wrong place shows
        for name, p in model.named_parameters():
            p.normal_(1.0 if name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight")) else 0.0, 0.2)
    model.save_pretrained(folder)
    return model, folder / "model.safetensors"


def test_logits_are_those_of_hugging_face(tmp_path: Path) -> None:
    model, path = random_gpt2(tmp_path)
    assert is_gpt2(path)
    tokens = torch.randint(101, (3, 32))
    network = GPT(**OWN).eval()
    network.load_state_dict(convert(path))
    with torch.inference_mode():
        expected = model(tokens).logits
        assert expected.abs().max() > 1
        torch.testing.assert_close(network(tokens), expected, rtol=0, atol=1e-4)
        exact = GPT(**{**OWN, "activation": "gelu"}).eval()
        exact.load_state_dict(network.state_dict())
        assert (exact(tokens) - expected).abs().max() > 1e-4  # the approximation is told apart


def test_the_first_files_names_masks_and_dtype(tmp_path: Path) -> None:
    """The file of the first release: no prefix, and each block's causal mask; here in half precision too."""
    _, path = random_gpt2(tmp_path)
    state = {name.removeprefix("transformer."): tensor.half() for name, tensor in load_file(path).items()}
    state |= {f"h.{i}.attn.bias": torch.ones(1, 1, 32, 32).tril() for i in range(2)}
    state["h.0.attn.masked_bias"] = torch.tensor(-1e4)
    save_file({**state, "lm_head.weight": state["wte.weight"].clone()}, tmp_path / "first.safetensors")
    assert is_gpt2(tmp_path / "first.safetensors")
    found, expected = convert(tmp_path / "first.safetensors"), convert(path)
    assert found.keys() == expected.keys() == GPT(**OWN).state_dict().keys()
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-3)


def test_positions_are_cut_to_a_shorter_block(tmp_path: Path) -> None:
    model, path = random_gpt2(tmp_path)
    network = GPT(**{**OWN, "block_size": 8}).eval()
    network.load_state_dict(convert(path, block_size=8))
    tokens = torch.randint(101, (1, 8))
    with torch.inference_mode():
        torch.testing.assert_close(network(tokens), model(tokens).logits, rtol=0, atol=1e-4)


def test_other_files_are_told_apart_or_refused(tmp_path: Path) -> None:
    _, path = random_gpt2(tmp_path)
    save_file(GPT(**OWN).state_dict(), tmp_path / "own.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no such thing")
    (tmp_path / "last.ckpt").write_bytes(path.read_bytes())
    for name in ("own.safetensors", "broken.safetensors", "last.ckpt", "absent.safetensors"):
        assert not is_gpt2(tmp_path / name)
    state = load_file(path)
    save_file({**state, "transformer.h.0.crossattention.c_attn.weight": torch.ones(2)}, tmp_path / "more.safetensors")
    with pytest.raises(RunError, match=r"more\.safetensors: holds more than a GPT-2 \(transformer\.h\.0\.crossatt"):
        convert(tmp_path / "more.safetensors")
    save_file({**state, "lm_head.weight": torch.ones(101, 48)}, tmp_path / "untied.safetensors")
    with pytest.raises(RunError, match=r"untied\.safetensors: its lm_head\.weight is not its embedding"):
        convert(tmp_path / "untied.safetensors")
