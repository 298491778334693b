"""What is installed and how: ranges, pins, what travels in the wheel, what `make` does."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import frugal
from frugal.settings import config_folder

INSTALLED_EXTRAS = ("wandb", "onnx", "gpu", "dev")  # by make


@pytest.fixture(scope="module")
def root() -> Path:
    return Path(__file__).parents[1]


@pytest.fixture(scope="module")
def project(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def pins(root: Path) -> dict[str, str]:
    lines = [line for line in (root / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pairs = [line.split("==") for line in lines]
    assert all(len(pair) == 2 for pair in pairs), "every line of constraints.txt is an exact pin"
    return {canonicalize_name(name): version for name, version in pairs}


def requirements(project: dict[str, Any], extras: tuple[str, ...] = INSTALLED_EXTRAS) -> list[Requirement]:
    lists = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)]
    return [Requirement(text) for texts in lists for text in texts]


def closure(roots: list[Requirement]) -> set[str]:
    """Names of everything that `roots` pull in on this machine, by the metadata of what is installed."""
    todo, seen, names = list(roots), set(), set()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        key = (name, frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        names.add(name)
        try:
            texts = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for child in map(Requirement, texts):
            extras = {"", *requirement.extras}
            if child.marker is None or any(child.marker.evaluate({"extra": extra}) for extra in extras):
                todo.append(child)
    return names


def test_pins_cover_all_that_make_installs(project: dict[str, Any], pins: dict[str, str]) -> None:
    # A CUDA build of torch pins the libraries that it brings.
    unpinned = closure(requirements(project)) - set(pins)
    assert [name for name in unpinned if not name.startswith(("nvidia-", "cuda-", "triton"))] == []


def test_pins_lie_inside_the_ranges(project: dict[str, Any], pins: dict[str, str]) -> None:
    outside = [
        str(requirement)
        for requirement in requirements(project)
        if not requirement.specifier.contains(pins[canonicalize_name(requirement.name)])
    ]
    assert outside == []


def test_torch_pin_accepts_builds_for_any_device(pins: dict[str, str]) -> None:
    specifier = SpecifierSet(f"=={pins['torch']}")
    assert specifier.contains(f"{pins['torch']}+cpu")
    assert specifier.contains(f"{pins['torch']}+cu130")


def test_torchvision_is_not_pulled_in(project: dict[str, Any], pins: dict[str, str]) -> None:
    assert "torchvision" not in closure(requirements(project)) | set(pins)


def test_every_import_is_declared(root: Path, project: dict[str, Any]) -> None:
    by_import = importlib.metadata.packages_distributions()
    declared = {
        canonicalize_name(r.name)
        for r in requirements(project, tuple(set(project["optional-dependencies"]) - {"dev", "all"}))
    }
    undeclared: dict[str, str] = {}
    for path in sorted((root / "src" / "frugal").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            modules: list[str] = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                modules = [node.module]
            for top in {module.split(".")[0] for module in modules} - {"frugal"} - set(sys.stdlib_module_names):
                names = {canonicalize_name(name) for name in by_import.get(top, [top])}
                if not names & declared:
                    undeclared[top] = str(path.relative_to(root))
    assert undeclared == {}


def test_options_are_found_in_the_checkout(root: Path) -> None:
    assert config_folder().samefile(root / "configs")


def test_every_option_begins_with_a_comment_and_a_command(root: Path) -> None:
    for path in sorted((root / "configs" / "logger").glob("*.yaml")):
        lines = path.read_text().splitlines()
        head = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
        assert any(f"frugal train logger={path.stem}" in line for line in head), path.name


@pytest.mark.slow
def test_wheel_holds_the_options_and_runs_elsewhere(root: Path, tmp_path: Path) -> None:
    # Without isolation: hatchling comes from the dev extra, so nothing is fetched.
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, copy)
    for name in ("src", "configs"):
        shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path / "dist")]
    subprocess.run(build, cwd=copy, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert wheel.name == f"frugal_ml-{frugal.__version__}-py3-none-any.whl"

    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    shipped = {path.relative_to(root / "configs") for path in (root / "configs").rglob("*.yaml")}
    inside = {path.relative_to(unpacked / "frugal" / "configs") for path in unpacked.rglob("*.yaml")}
    assert inside == shipped
    assert len(list(unpacked.rglob("LICENSE"))) == 1
    assert not (unpacked / "configs").exists()
    assert {path.name for path in (unpacked / "frugal" / "report" / "page").iterdir()} >= {
        "page.html",
        "page.js",
        "page.css",
    }

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = os.environ | {"PYTHONPATH": str(unpacked)}
    shown = subprocess.run(
        [sys.executable, "-m", "frugal", "train", "--cfg", "job"],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "batch_size" in shown.stdout
    where = "import frugal.settings as s; print(s.config_folder())"
    found = subprocess.run(
        [sys.executable, "-c", where], cwd=elsewhere, env=environment, capture_output=True, text=True
    )
    assert Path(found.stdout.strip()) == unpacked / "frugal" / "configs"


@pytest.fixture
def made(root: Path, tmp_path: Path) -> Path:
    """A folder in which `make setup` has been: a .venv whose programs print what they were called with."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(root / name, tmp_path)
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "frugal", "ruff", "mypy"):
        (programs / name).write_text(f'#!/bin/sh\necho "{name} $@" >> "{tmp_path}/calls"\n')
        (programs / name).chmod(0o755)
    (tmp_path / ".venv" / ".installed").touch()
    return tmp_path


def make(folder: Path, *arguments: str) -> str:
    done = try_make(folder, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def try_make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # These tests run under `make test`, whose variables would come down to this one.
    environment = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "ARGS")}
    return subprocess.run(["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True)


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines()


def test_make_alone_lists_the_targets(made: Path) -> None:
    listed = re.findall(r"^ +make (\S+) +\S", make(made), flags=re.MULTILINE)
    assert {"help", "setup", "train", "test", "test-all", "lint", "format", "clean"} <= set(listed)


def test_make_installs_nothing_twice(made: Path) -> None:
    make(made, "train", "ARGS=data=mnist optim.lr=0.05")
    assert calls(made) == ["frugal train data=mnist optim.lr=0.05"]


def test_make_installs_again_when_a_pin_changes(made: Path) -> None:
    later = (made / ".venv" / ".installed").stat().st_mtime + 10
    os.utime(made / "constraints.txt", (later, later))
    make(made, "setup", f"PYTHON={sys.executable}")
    installs = [call for call in calls(made) if " pip install " in call]
    assert installs and all("--constraint constraints.txt" in call for call in installs)
    assert any("--editable .[all,dev]" in call for call in installs)


def test_make_test_leaves_the_slow_tests_out(made: Path) -> None:
    make(made, "test")
    make(made, "test-all")
    quick, everything = calls(made)
    assert "-m not slow " in quick and "not slow" not in everything and " -m  " in everything


def test_make_refuses_a_python_that_is_too_old(made: Path) -> None:
    old = made / "old-python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    (made / ".venv" / ".installed").unlink()
    done = try_make(made, "setup", f"PYTHON={old}")
    assert done.returncode != 0
    assert "Python 3.11 to 3.13" in done.stdout + done.stderr
    assert not (made / "calls").exists()


def test_commit_hooks_fetch_nothing(root: Path) -> None:
    import yaml

    hooks = yaml.safe_load((root / ".pre-commit-config.yaml").read_text())
    assert [repo["repo"] for repo in hooks["repos"]] == ["local"]
    assert {hook["language"] for repo in hooks["repos"] for hook in repo["hooks"]} == {"system"}
