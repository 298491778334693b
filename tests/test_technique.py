"""A technique of the user's own: plugged in by name, called in the order of the stages, its work in the artefact."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

import frugal as package
import project
from command import KILLED_AT, TINY, die_in_training, forget, frugal, runs
from frugal import artefact
from frugal.errors import RefusedError, SettingsError
from frugal.record import Record
from frugal.technique import STAGES

pytest_plugins = ("users_home",)

TECHNIQUES = '''"""Two techniques that write down when they are called."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from frugal.technique import Technique

CALLS: list[str] = []


class Halve(Technique):
    """Keeps a fixed share of each weight matrix, chosen at random before training; masks survive a resume."""

    def __init__(self, density: float = 0.5, name: str = "halve") -> None:
        self.density, self.name = density, name
        self.masks: dict[str, Tensor] = {}
        self.restored = 0

    def prepare(self, network: nn.Module) -> None:
        CALLS.append(f"prepare {self.name}")
        draw = torch.Generator().manual_seed(torch.initial_seed())
        self.masks = {
            name: (torch.rand(weight.shape, generator=draw) < self.density).float()
            for name, weight in network.named_parameters()
            if weight.ndim == 2
        }

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._apply(pl_module.network)

    def finalize(self, network: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
        batches = list(batches)
        CALLS.append(f"finalize {self.name} {sum(map(len, batches))}")
        assert not network.training and batches[0].dtype == torch.float32
        self._apply(network)
        return network

    def figures(self) -> dict[str, Any]:
        kept = sum(int(mask.sum()) for mask in self.masks.values())
        density = kept / sum(mask.numel() for mask in self.masks.values())
        return {"density": density, "restored": self.restored, "status": "masked"}

    def state_dict(self) -> dict[str, Any]:
        return {"masks": self.masks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.masks, self.restored = state_dict["masks"], self.restored + 1

    def _apply(self, network: nn.Module) -> None:
        weights = dict(network.named_parameters())
        with torch.no_grad():
            for name, mask in self.masks.items():
                weights[name].mul_(mask)


class Again(Halve):
    """The same once more: Lightning tells the states of callbacks apart by their class."""


class Shrink(Technique):
    """Another network than it was given: what is tested and written must be this one."""

    def finalize(self, network: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
        CALLS.append("finalize shrink")
        with torch.no_grad():
            for weight in network.parameters():
                weight.zero_()
        return network
'''
OPTION = """# {name}: a technique of the user's own.
# frugal train {group}={name}
needs: {{data.task: [classification]}}
excludes: {{precision.mode: [16-mixed]}}
_target_: mine.techniques.{target}
"""


@pytest.fixture
def lab(home: Path) -> Path:
    (home / "mine" / "techniques.py").write_text(TECHNIQUES)
    for group, name, target in (
        ("pruning", "halve", "Halve\ndensity: 0.5"),
        ("deploy", "shrink", "Shrink"),
        ("quantization", "again", "Again\ndensity: 1.0\nname: again"),
        ("selection", "no_technique", "torch"),
    ):
        (home / "configs" / group).mkdir()
        (home / "configs" / group / f"{name}.yaml").write_text(OPTION.format(group=group, name=name, target=target))
    forget()
    return home


def calls() -> list[str]:
    from mine import techniques  # type: ignore[import-not-found]

    return list(techniques.CALLS)


def weights(run: Path) -> dict[str, torch.Tensor]:
    state, _ = artefact.read(run / "model.safetensors")
    return state


def test_a_technique_acts_and_is_recorded(lab: Path, tmp_path: Path) -> None:
    record = package.run([*TINY, "pruning=halve"])
    (run,) = runs(tmp_path / "logs")
    assert calls() == ["prepare halve", "finalize halve 512"]
    figures = record.techniques["pruning"]
    assert figures == {"option": "halve", "density": pytest.approx(0.5, abs=0.01), "restored": 0, "status": "masked"}
    assert list(record.techniques) == ["pruning"]
    zeros = sum(int((tensor == 0).sum()) for tensor in weights(run).values() if tensor.ndim == 2)
    count = sum(tensor.numel() for tensor in weights(run).values() if tensor.ndim == 2)
    assert zeros / count == pytest.approx(1 - figures["density"], abs=1e-6)
    # counted in the file that was written, not taken from the technique
    assert record.sparsity.prunable == pytest.approx(zeros / count)
    assert record.size.nonzero_parameters == sum(int((tensor != 0).sum()) for tensor in weights(run).values())
    assert run.name.startswith("halve-") and record.config["choices"]["pruning"] == "halve"
    assert "compress" in record.time.ledger_s


def test_stages_act_in_their_order_whatever_the_commands_is(lab: Path, tmp_path: Path) -> None:
    record = package.run([*TINY, "deploy=shrink", "quantization=again", "pruning=halve"])
    assert calls() == [
        "prepare halve", "prepare again", "finalize halve 512", "finalize again 512", "finalize shrink",
    ]  # fmt: skip
    assert list(record.techniques) == ["pruning", "quantization", "deploy"]
    assert [stage for stage in STAGES if stage in record.techniques] == list(record.techniques)


def test_what_is_tested_is_what_was_written(lab: Path, tmp_path: Path) -> None:
    """A network of zeros gives every class the same logit: the loss is that of guessing, whatever was trained."""
    record = package.run([*TINY, "deploy=shrink", "trainer.limit_train_batches=10"])
    (run,) = runs(tmp_path / "logs")
    assert record.quality["test/loss"] == pytest.approx(torch.tensor(10.0).log().item(), abs=1e-5)
    assert record.quality["train/loss"] < 2.3
    assert record.size.nonzero_parameters == 0 and not any(tensor.any() for tensor in weights(run).values())


def test_its_state_survives_a_kill(lab: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    words = [*TINY[:1], "trainer.max_epochs=3", *TINY[2:], "pruning=halve", "run.checkpoint_every_steps=1"]
    whole = package.run(words)
    (first,) = runs(logs)
    assert project.finish(project.start(lab, logs, words, before=die_in_training)) == -signal.SIGKILL
    forget()
    record = package.run([*words, "run.resume=true"])
    (run,) = set(runs(logs)) - {first}
    assert record.run.resumed_at_step == [KILLED_AT] and record.techniques["pruning"]["restored"] == 1
    assert whole.techniques["pruning"]["restored"] == 0
    assert (run / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()


def test_what_it_needs_and_excludes(lab: Path, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"pruning=halve cannot be combined with precision\.mode=16-mixed"):
        package.run([*TINY, "pruning=halve", "precision=fp16"])
    with pytest.raises(SettingsError, match=r"pruning\.densty=1: unknown; did you mean density\?"):
        package.run([*TINY, "pruning=halve", "+pruning.densty=1"])
    with pytest.raises(SettingsError, match=r"pruning\.density=half: needs a number"):
        package.run([*TINY, "pruning=halve", "pruning.density=half"])
    assert not runs(tmp_path / "logs")


def test_a_class_that_is_no_technique(lab: Path, tmp_path: Path) -> None:
    option = lab / "configs" / "selection" / "no_technique.yaml"
    option.write_text("_target_: torch.nn.Identity\n")
    assert "is no frugal.technique.Technique" in frugal("train", *TINY, "selection=no_technique").error
    option.write_text("_target_: mine.techniques.torch.nn.Identity\n")
    assert frugal("train", *TINY, "selection=no_technique").code != 0
    assert not runs(tmp_path / "logs")


def test_it_changes_the_identity(lab: Path, tmp_path: Path) -> None:
    outcome = frugal("train", "-m", *TINY, "pruning=halve", "pruning.density=0.5,0.25", "seed=0")
    assert outcome.code == 0, outcome.err
    densities = {Record.read(run).techniques["pruning"]["density"] for run in runs(tmp_path / "logs")}
    assert sorted(round(density, 1) for density in densities) == [0.2, 0.5]  # 0.25 rounds to even
