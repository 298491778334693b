"""Paths as people give and read them. Torch-free."""

from __future__ import annotations

from pathlib import Path

from frugal.errors import RunError

# What a run leaves for use, in the order in which it is looked for: a run has one of them, the others are removed when
# it is written.
FORMATS = (".onnx", ".pt2", ".frugal", ".safetensors")
ARTEFACTS = tuple(f"model{suffix}" for suffix in FORMATS)
WEIGHTS = (".ckpt", *FORMATS)


def shown(path: Path) -> str:
    """Relative to the working directory where that is shorter."""
    try:
        return str(Path(path).resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def find_weights(source: Path) -> Path:
    """The file to read for a run's folder, a checkpoint or an artefact: the artefact where there is one."""
    source = Path(source).expanduser()
    if source.is_dir():
        for candidate in (*(source / name for name in ARTEFACTS), source / "checkpoints" / "last.ckpt"):
            if candidate.is_file():
                return candidate
        raise RunError(f"{shown(source)}: neither an artefact nor a checkpoint lies here")
    if not source.is_file() or source.suffix not in WEIGHTS:
        what = "is no such file" if source.is_file() else "does not exist"
        raise RunError(
            f"{shown(source)}: {what}; give a run's folder, a checkpoint (.ckpt) or an artefact "
            f"({', '.join(reversed(FORMATS))})"
        )
    return source
