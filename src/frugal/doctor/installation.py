"""Whether what is installed fits together: versions, imports, the shipped options, extras."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import platform
import subprocess
import sys
import time
from collections.abc import Iterator

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from frugal.doctor.check import DISTRIBUTION, Check, one_line, version
from frugal.settings import config_folder

FOUNDATIONS = ("torch", "lightning", "pytorch-lightning", "torchmetrics", "hydra-core", "omegaconf")
# The distributions that each extra adds, and what is lost without it.
EXTRAS = {
    "wandb": (("wandb",), "logger=wandb"),
    "tensorboard": (("tensorboard",), "logger=tensorboard"),
    "mlflow": (("mlflow-skinny",), "logger=mlflow"),
    "text": (("tokenizers",), "tokenizer=bpe"),
    "pruning": (("torch-pruning",), "pruning=structured"),
    "zstd": (("zstandard",), "coding=zstd"),
    "onnx": (("onnx", "onnxruntime", "onnxscript"), "ONNX Runtime's latency and int8 artefacts"),
    "gpu": (("nvidia-ml-py",), "energy of NVIDIA GPUs"),
}


def installation() -> Iterator[Check]:
    if version(DISTRIBUTION) is None:
        fix = "make setup, or: pip install --editable ."
        yield Check("installation", "frugal", "warn", "runs from its source folder, not installed", fix)
    else:
        yield from _ranges()
    yield from _mismatches()
    for package in ("torch", "lightning", "hydra"):
        yield _import(package)
    options = config_folder()
    if (options / "train.yaml").exists():
        yield Check("installation", "shipped options", "ok", str(options))
    else:
        fix = f"pip install --force-reinstall --no-deps {DISTRIBUTION}"
        yield Check("installation", "shipped options", "broken", f"no train.yaml in {options}", fix)


def _ranges() -> Iterator[Check]:
    """Python and every package that Frugal needs, against the ranges it was made for."""
    supported = SpecifierSet(importlib.metadata.metadata(DISTRIBUTION)["Requires-Python"])
    if supported.contains(platform.python_version(), prereleases=True):
        yield Check("installation", "Python", "ok", platform.python_version())
    else:
        fix = f"use a Python {supported}: make clean; make setup PYTHON=/path/to/python3.11"
        yield Check("installation", "Python", "broken", platform.python_version(), fix)
    for requirement in _requirements(DISTRIBUTION):
        found = version(requirement.name)
        if found is not None and requirement.specifier.contains(found, prereleases=True):
            yield Check("installation", requirement.name, "ok", found)
        else:
            state = f"{found}, outside {requirement.specifier}" if found else "not installed"
            fix = f'pip install "{requirement.name}{requirement.specifier}"'
            yield Check("installation", requirement.name, "broken", state, fix)


def _mismatches() -> Iterator[Check]:
    """Versions that the packages which Frugal is built on refuse of each other, lightning of torch for one."""
    for package in FOUNDATIONS:
        if version(package) is None:
            continue
        for requirement in _requirements(package):
            found = version(requirement.name)
            if found is not None and not requirement.specifier.contains(found, prereleases=True):
                state = f"{version(package)} wants {requirement.name}{requirement.specifier}, there is {found}"
                fix = f'pip install "{requirement.name}{requirement.specifier}"'
                yield Check("installation", package, "broken", state, fix)


def _requirements(distribution: str) -> Iterator[Requirement]:
    for text in importlib.metadata.requires(distribution) or []:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement


def _import(package: str) -> Check:
    """Import it here: torch and lightning that do not fit together fail only then."""
    begin = time.perf_counter()
    try:
        importlib.import_module(package)
    except Exception as error:
        fix = f"install the versions that belong together: make clean; make setup (or pip install -U {DISTRIBUTION})"
        return Check("installation", f"import {package}", "broken", one_line(error), fix)
    return Check("installation", f"import {package}", "ok", f"{time.perf_counter() - begin:.1f} s")


def torchvision() -> Iterator[Check]:
    """Frugal does not use it, but lightning imports it where it is: one that does not fit this torch breaks both."""
    if importlib.util.find_spec("torchvision") is None:
        return
    tried = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True, timeout=120)
    if tried.returncode == 0:
        yield Check("installation", "torchvision", "ok", "fits this torch; not needed")
    else:
        reason = tried.stderr.strip().splitlines()[-1] if tried.stderr.strip() else f"exit code {tried.returncode}"
        fix = "pip uninstall torchvision (it does not fit this build of torch, and lightning imports it)"
        yield Check("installation", "torchvision", "broken", reason, fix)


def extras() -> Iterator[Check]:
    for extra, (distributions, use) in EXTRAS.items():
        versions = {name: version(name) for name in distributions}
        absent = [name for name, version in versions.items() if version is None]
        if absent:
            fix = f'pip install "{DISTRIBUTION}[{extra}]"'
            yield Check("installation", f"extra {extra}", "missing", f"no {', '.join(absent)}: no {use}", fix)
        else:
            found = ", ".join(f"{name} {version}" for name, version in versions.items())
            yield Check("installation", f"extra {extra}", "ok", found)
