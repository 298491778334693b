"""What the docs tell a reader to write works as it stands there, every command in them composes, every link leads
somewhere, and the page of options is what its generator makes."""

from __future__ import annotations

import importlib.util
import itertools
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest

import frugal
from frugal.compose import compose

DOCS = Path(__file__).parents[1] / "docs"
README = Path(__file__).parents[1] / "README.md"
OPTIONS = DOCS / "options.md"
PAGES = [README, *sorted(DOCS.glob("*.md"))]


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


def test_what_extending_says_of_tables_and_callbacks_works(reader: Path, tmp_path: Path) -> None:
    words = ["data=houses", "model=pairs", "callbacks=gradient_norm", "optim.lr=0.01", "measure=none"]
    record = frugal.run([*words, "trainer.max_epochs=20", "trainer.threads=1"])
    assert record.quality["test/r2"] > 0.98
    assert record.quality["test/rmse"] == pytest.approx(5000, rel=0.5)  # the noise of the prices
    assert record.data["cleaning"]["train"]["broken"] == 5 and record.data["cleaning"]["test"]["broken"] == 1
    metrics = (tmp_path / "logs" / "default" / record.run.name / "metrics.csv").read_text()
    assert "train/gradient_norm" in metrics.splitlines()[0]


# ------------------------------------------------------------------------------------------------------------ commands
def commands() -> list[str]:
    found = []
    for page in PAGES:
        for line in page.read_text().splitlines() if page != OPTIONS else ():  # whose commands the smoke tests compose
            if re.match(r"frugal (train|evaluate|predict) [\w-]", line):
                found.append(line.split("   ")[0].strip())
    return sorted(set(found))


@pytest.mark.parametrize("command", commands())
def test_commands_in_the_docs_compose(command: str, reader: Path) -> None:
    _, verb, *words = shlex.split(command, comments=True)
    if verb != "train":
        words[0] = f"source={words[0]}"
    words = [word for word in words if "=" in word and not word.startswith("-")]
    swept = [[f"{word.partition('=')[0]}={value}" for value in word.partition("=")[2].split(",")] for word in words]
    for picked in itertools.zip_longest(*swept):
        compose(verb, [value or values[0] for value, values in zip(picked, swept, strict=True)])


# --------------------------------------------------------------------------------------------------------------- links
def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    found: dict[str, int] = {}
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for heading in re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found[slug] = found.get(slug, -1) + 1
    return {slug if n == 0 else f"{slug}-{n}" for slug, last in found.items() for n in range(last + 1)}


def links(page: Path) -> list[str]:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?:src|href|srcset)=\"([^\"]+)\"", text)
    return [link for link in found if not re.match(r"[a-z]+:", link)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}"


def test_the_index_names_every_page() -> None:
    assert set(links(DOCS / "README.md")) >= {page.name for page in DOCS.glob("*.md")} - {"README.md"}


# ------------------------------------------------------------------------------------------------- the page of options
@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["generate"] = importlib.util.module_from_spec(spec)  # its dataclass looks there
    spec.loader.exec_module(module)
    return module


def test_the_page_of_options_is_what_the_generator_makes(generate: ModuleType) -> None:
    assert OPTIONS.read_text() == generate.page(), "run `make docs` and commit docs/options.md"


def test_the_page_of_options_has_every_group_and_every_comment(generate: ModuleType) -> None:
    folders = {path.name for path in generate.CONFIGS.iterdir() if path.is_dir()}
    assert set(generate.groups()) == folders  # each stands in train.yaml
    assert folders <= generate.GROUPS.keys()
    page = generate.page().replace("\\", "")
    for path in generate.CONFIGS.glob("*/*.yaml"):
        for comment in re.findall(r"(?:^|\s)#[ ]+(.*)", path.read_text()):
            assert comment.startswith("@package") or comment.replace("\\", "") in page, f"{path}: {comment}"


def test_an_option_file_is_read(generate: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "coffee").mkdir()
    path = tmp_path / "coffee" / "strong.yaml"
    path.write_text(
        "# Coffee, strong:\n# of two spoons.\n# frugal train coffee=strong\n"
        "defaults:\n  - override /cup@_global_.cup: large  # or it spills\n  - _self_\n"
        "needs: {data.task: [waking, staying]}\n_target_: mine.Coffee\n"
        "spoons: 2  # heaped\nwater:  # from a spring\n  litres: 0.2\nbeans: [arabica, robusta]\n"
    )
    option = generate.read_option(path)
    assert (option.group, option.name) == ("coffee", "strong")
    assert option.about == "Coffee, strong: of two spoons." and option.commands == ["frugal train coffee=strong"]
    assert option.facts == ["Brings `cup=large` (or it spills).", "Needs `data.task` `waking` or `staying`."]
    assert option.knobs == [
        ("coffee.spoons", "2", "heaped"),
        ("coffee.water", "", "from a spring"),
        ("coffee.water.litres", "0.2", ""),
        ("coffee.beans", "[arabica, robusta]", ""),
    ]
    path.write_text("spoons: 2\n")
    with pytest.raises(ValueError, match=r"strong\.yaml: its first comment lines must say"):
        generate.read_option(path)


def test_settings_are_shown_with_type_default_and_comment(generate: ModuleType) -> None:
    page = generate.page()
    assert "| `run.weights` | last, best | `last` | which weights become the artefact: last or best |" in page
    assert "| `measure.batches` | list[int] | `[1, 8, 64]` |  |" in page
    assert "| `paths.data_dir` | str | `${oc.env:FRUGAL_DATA_DIR,data}` |  |" in page
    assert "| `generate.temperature` | float | `0.8` | 0: always the likeliest token |" in page
