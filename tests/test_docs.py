"""What the docs tell a reader to write works as it stands there, and every command in them composes."""

from __future__ import annotations

import itertools
import re
import shlex
import sys
from pathlib import Path

import pytest

import frugal
from frugal.compose import compose

DOCS = Path(__file__).parents[1] / "docs"
README = Path(__file__).parents[1] / "README.md"


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reader's project: every block of docs/extending.md that names its file, written there."""
    (tmp_path / "pyproject.toml").write_text('[tool.frugal]\npackages = ["mine"]\n')
    for block in re.findall(r"```(?:python|yaml)\n(.*?)```", (DOCS / "extending.md").read_text(), flags=re.DOTALL):
        named = re.match(r"# ((?:mine|configs)/\S+)\n(.*)", block, flags=re.DOTALL)
        if named:
            path = tmp_path / named.group(1)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(named.group(2))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.split(".")[0] == "mine"]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def test_what_extending_says_works(reader: Path) -> None:
    words = ["model=tiny", "model.network.width=64", "data=squares", "callbacks=swa", "pruning=mine", "measure=none"]
    record = frugal.run([*words, "trainer.max_epochs=8"])
    assert record.status == "completed"
    assert record.quality["test/accuracy"] > 0.9
    assert record.techniques == {"pruning": {"option": "mine", "density": 0.5, "status": "masked"}}
    assert record.sparsity.prunable == pytest.approx(0.5, abs=0.01)
    assert record.size.parameters == 784 * 64 + 64 + 64 * 4 + 4


def test_what_extending_says_of_text_works(reader: Path) -> None:
    size = ["model.network.layers=1", "model.network.heads=2", "model.network.width=32"]
    record = frugal.run(["data=songs", *size, "optim=muon", "measure=none", "trainer.max_epochs=2"])
    assert record.data["splits"]["train"]["documents"] == 286 and record.data["tokenizer"]["name"] == "Bytes"
    assert record.quality["test/loss"] < 2.5  # of ln 256 = 5.5


def commands() -> list[str]:
    found = []
    for page in [README, *sorted(DOCS.glob("*.md"))]:
        for line in page.read_text().splitlines():
            if re.match(r"\s*frugal train [a-z-]", line) and "RUN" not in line:
                found.append(line.split("   ")[0].strip())
    return sorted(set(found))


@pytest.mark.parametrize("command", commands())
def test_commands_in_the_docs_compose(command: str, reader: Path) -> None:
    words = [word for word in shlex.split(command, comments=True)[2:] if not word.startswith("-")]
    swept = [[f"{word.partition('=')[0]}={value}" for value in word.partition("=")[2].split(",")] for word in words]
    for picked in itertools.zip_longest(*swept):
        compose("train", [value or values[0] for value, values in zip(picked, swept, strict=True)])
