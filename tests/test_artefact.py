"""The artefact: bytes that depend on weights and configuration alone, read back to the same network."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import nn

from frugal import artefact, build
from frugal.artefact import Description
from frugal.errors import RunError, SettingsError
from frugal.models.simple_net import SimpleNet
from frugal.paths import find_weights

NODE = {"_target_": "frugal.models.simple_net.SimpleNet", "hidden": [6, 5], "activation": "relu"}


@pytest.fixture
def description() -> Description:
    return Description(
        model={"_target_": "frugal.models.classifier.Classifier", "network": dict(NODE)},
        dims={"input_shape": [1, 4, 4], "classes": 3},
        task="classification",
        preprocess={},
        tokenizer={},
        state={"preprocess": {"mean": [0.25], "std": [0.5]}},
        data={"task": "classification"},
    )


@pytest.fixture
def network() -> SimpleNet:
    return SimpleNet([1, 4, 4], 3, hidden=[6, 5])


def test_what_is_written_is_read(network: SimpleNet, description: Description, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    artefact.write(network, description, path)
    again, said = artefact.load(path)
    assert isinstance(again, SimpleNet) and not again.training and said == description
    for (name, ours), (theirs_name, theirs) in zip(
        network.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert name == theirs_name and torch.equal(ours, theirs)
    x = torch.randn(2, 1, 4, 4)
    assert torch.equal(again(x), network.eval()(x))


def test_bytes_depend_on_weights_and_configuration_alone(
    network: SimpleNet, description: Description, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artefact.write(network, description, tmp_path / "a.safetensors")
    content = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    backwards = Description(**dict(reversed(list(vars(description).items()))))
    backwards.model = dict(reversed(list(description.model.items())))
    artefact.write(copy.deepcopy(network), backwards, tmp_path / "below" / "b.safetensors")
    assert (tmp_path / "below" / "b.safetensors").read_bytes() == content
    assert str(tmp_path).encode() not in content and os.uname().nodename.encode() not in content
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] += 1e-6
    artefact.write(network, description, tmp_path / "c.safetensors")
    assert (tmp_path / "c.safetensors").read_bytes() != content


def test_buffers_types_and_tied_weights(tmp_path: Path, description: Description) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 3, bias=False)
            self.b = nn.Linear(3, 3, bias=False)
            self.b.weight = self.a.weight
            self.norm = nn.BatchNorm1d(3)
            self.register_buffer("view", torch.arange(6.0).view(2, 3).t())
            self.register_buffer("bf16", torch.ones(2, dtype=torch.bfloat16))
            self.register_buffer("not_kept", torch.ones(2), persistent=False)

    network = Odd()
    artefact.write(network, description, tmp_path / "odd.safetensors")
    state, _ = artefact.read(tmp_path / "odd.safetensors")
    assert state.keys() == network.state_dict().keys() and "not_kept" not in state
    for name, tensor in network.state_dict().items():
        assert torch.equal(state[name], tensor) and state[name].dtype == tensor.dtype, name
    other = Odd()
    artefact.load_state(other, state, tmp_path / "odd.safetensors")
    assert torch.equal(other.b.weight, network.a.weight) and other.norm.num_batches_tracked == 0


@pytest.mark.parametrize(
    ("hidden", "says"),
    [
        ([6, 4], r"layers\.3\.weight is \(5, 6\) instead of \(4, 6\)"),
        ([6], r"instead of"),
        ([6, 5, 4], r"instead of|it has no"),
    ],
)
def test_another_networks_state_is_refused_by_name(
    hidden: list[int], says: str, network: SimpleNet, description: Description, tmp_path: Path
) -> None:
    artefact.write(network, description, tmp_path / "a.safetensors")
    state, _ = artefact.read(tmp_path / "a.safetensors")
    other = SimpleNet([1, 4, 4], 3, hidden=hidden)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(RunError, match=says):
        artefact.load_state(other, state, tmp_path / "a.safetensors")
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())


def test_a_state_with_more_than_the_network_is_refused(network: SimpleNet, tmp_path: Path) -> None:
    state = {**network.state_dict(), "extra.weight": torch.zeros(1)}
    with pytest.raises(RunError, match=r"it has extra\.weight besides"):
        artefact.load_state(network, state, tmp_path / "x")


def test_a_class_named_in_the_file_passes_the_allow_list(
    network: SimpleNet, description: Description, tmp_path: Path
) -> None:
    marker = tmp_path / "executed"
    description.model["network"] = {"_target_": "torch.utils.collect_env.run", "command": f"touch {marker}"}
    artefact.write(network, description, tmp_path / "a.safetensors")
    with pytest.raises(SettingsError, match="collect_env"):
        artefact.load(tmp_path / "a.safetensors")
    assert not marker.exists()


@pytest.mark.parametrize(
    "metadata",
    [None, {}, {"frugal": "{}"}, {"frugal": "["}, {"frugal": "[]"}, {"frugal": '{"model": 3}'}, {"frugal": "null"}],
)
def test_a_safetensors_file_of_somebody_else(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    save_file({"w": torch.zeros(1)}, tmp_path / "a.safetensors", metadata=metadata)
    with pytest.raises(RunError) as error:
        artefact.load(tmp_path / "a.safetensors")
    assert "a.safetensors" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "broken", [{"model": {}}, {"model": {"network": 3}}, {"model": None}, {"dims": None}, {"dims": {"x": 1}}]
)
def test_a_description_that_says_nonsense(
    broken: dict[str, Any], network: SimpleNet, description: Description, tmp_path: Path
) -> None:
    plain = {**description.to_dict(), **broken}
    save_file(network.state_dict(), tmp_path / "a.safetensors", metadata={"frugal": json.dumps(plain)})
    with pytest.raises((RunError, SettingsError)) as error:
        artefact.load(tmp_path / "a.safetensors")
    assert "\n" not in str(error.value)


def test_find(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="neither an artefact nor a checkpoint"):
        find_weights(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    assert find_weights(tmp_path) == tmp_path / "checkpoints" / "last.ckpt"
    (tmp_path / "model.safetensors").touch()
    assert find_weights(tmp_path) == tmp_path / "model.safetensors"
    assert find_weights(tmp_path / "model.safetensors") == tmp_path / "model.safetensors"
    with pytest.raises(RunError, match="does not exist"):
        find_weights(tmp_path / "x.ckpt")


# -------------------------------------------------------------------------------------------------------- crafted files
class Broken(nn.Module):
    """A network that reads its tensors while it is built, which none on `meta` can."""

    def __init__(self, size: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.scale = float(self.weight.detach().sum())


def test_a_network_that_reads_its_tensors_while_it_is_built(
    description: Description, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("frugal.models.simple_net.Broken", Broken, raising=False)
    description.model["network"] = {"_target_": "frugal.models.simple_net.Broken"}
    artefact.write(Broken(), description, tmp_path / "a.safetensors")
    network, _ = artefact.load(tmp_path / "a.safetensors")
    assert network.scale == 3.0
    description.model["network"]["size"] = 10**8
    artefact.write(Broken(), description, tmp_path / "a.safetensors")
    with pytest.raises(RunError, match=r"weight would be \(100000000,\)"):
        artefact.load(tmp_path / "a.safetensors")


def test_a_larger_network_than_the_file_holds_takes_no_memory(
    network: SimpleNet, description: Description, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    build = artefact.build_network
    monkeypatch.setattr(artefact, "build_network", lambda given: made.append(build(given)) or made[-1])
    description.model["network"]["hidden"] = [6, 7]
    artefact.write(network, description, tmp_path / "a.safetensors")
    with pytest.raises(RunError, match=r"\(5, 6\) instead of \(7, 6\)"):
        artefact.load(tmp_path / "a.safetensors")
    assert [{p.device.type for p in one.parameters()} for one in made] == [{"meta"}]


def test_what_is_built_on_the_way_draws_nothing(network: SimpleNet, description: Description, tmp_path: Path) -> None:
    """Loading costs the draws of one network, as if it were built once."""
    artefact.write(network, description, tmp_path / "a.safetensors")
    torch.manual_seed(0)
    SimpleNet([1, 4, 4], 3, hidden=[6, 5])
    expected = torch.rand(1)
    torch.manual_seed(0)
    artefact.load(tmp_path / "a.safetensors")
    assert torch.equal(torch.rand(1), expected)


def test_a_panic_of_a_library_is_one_line(tmp_path: Path) -> None:
    panic = type("PanicException", (BaseException,), {})
    for error in (panic("index\nout of"), MemoryError(), OverflowError("too\nlarge"), IndexError("no")):
        with pytest.raises(RunError, match=type(error).__name__) as caught, artefact.crafted(tmp_path):
            raise error
        assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
    with pytest.raises(KeyboardInterrupt), artefact.crafted(tmp_path):
        raise KeyboardInterrupt


# ------------------------------------------------------------------------------------------------------ what build says
def test_gpt_2s_weights_are_for_a_gpt(tmp_path: Path) -> None:
    names = ("wte.weight", "wpe.weight", "h.0.attn.c_attn.weight")
    save_file({name: torch.zeros(2, 2) for name in names}, tmp_path / "gpt2.safetensors")
    node = {"network": NODE, "init_from": str(tmp_path / "gpt2.safetensors")}
    data: Any = SimpleNamespace(dims=lambda: {"input_shape": [1, 4, 4], "classes": 3})
    with pytest.raises(SettingsError, match=r"model\.init_from=.*: is a GPT-2 file, and SimpleNet is no GPT"):
        build.build_network(OmegaConf.create({"model": node}), data)


def test_a_description_names_no_folder_of_the_tokenizers() -> None:
    cfg = OmegaConf.create(
        {
            "model": {},
            "preprocess": {},
            "data": {"task": "language_modeling"},
            "tokenizer": {"_target_": "frugal.tokenizer.bpe.BPE", "files": "/home/me/gpt2", "vocabulary": 300},
        }
    )
    data: Any = SimpleNamespace(dims=dict, state_dict=dict, source=SimpleNamespace(places=()))
    assert build.describe(cfg, data).tokenizer == {"_target_": "frugal.tokenizer.bpe.BPE", "vocabulary": 300}
    assert cfg.tokenizer.files == "/home/me/gpt2"
