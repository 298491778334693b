"""A user's own project for the tests: a package with a network that drops out, options for it, and jobs in processes of
their own that can be killed.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

PYPROJECT = '[tool.frugal]\npackages = ["mine"]\n'
NETWORK = '''"""A small network with dropout and batch statistics: what a resume must repeat exactly."""

from __future__ import annotations

from torch import Tensor, nn


class DropoutNet(nn.Module):
    def __init__(self, input_shape: list[int], classes: int, width: int = 16, dropout: float = 0.3) -> None:
        super().__init__()
        features = input_shape[0] * input_shape[1] * input_shape[2]
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(features, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(width, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Broken(DropoutNet):
    """Fails at the first step, as a user's own code may."""

    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("broken on purpose")
'''
OPTION = """# {name}: {what}
# frugal train model={name}
needs: {{data.task: [classification]}}
_target_: frugal.models.classifier.Classifier
network: {{_target_: mine.{target}}}
label_smoothing: 0.0
init_from: null
"""


def make(folder: Path) -> Path:
    """Write the project into `folder`."""
    (folder / "mine").mkdir(parents=True)
    (folder / "configs" / "model").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "mine" / "__init__.py").write_text(NETWORK)
    for name, target, what in (("dropout_net", "DropoutNet", "drops out"), ("broken", "Broken", "fails at once")):
        (folder / "configs" / "model" / f"{name}.yaml").write_text(OPTION.format(name=name, target=target, what=what))
    return folder


# Children are forked from a server that has imported everything heavy, so that a killed job costs a second, not four.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["frugal.train", "frugal.evaluate", "frugal.job", "hydra.main"])


def start(
    project: Path, logs: Path, overrides: Sequence[str], before: Callable[[], None] | None = None
) -> multiprocessing.process.BaseProcess:
    """`frugal train OVERRIDES` as a process of its own; `before` (at module level) is called in it first."""
    process = _context.Process(target=_child, args=(str(project), str(logs), list(overrides), before))
    process.start()
    return process


def finish(process: multiprocessing.process.BaseProcess, timeout: float = 120) -> int:
    """Wait for a job; its exit code, negative where a signal ended it."""
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"the job did not end within {timeout} s")
    return process.exitcode


def kill(process: multiprocessing.process.BaseProcess) -> None:
    if process.pid is not None and process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join()


def _child(project: str, logs: str, overrides: list[str], before: Callable[[], None] | None) -> None:
    # A child of a fork server would start its data workers through a server of its own, which outlives a SIGKILL.
    multiprocessing.set_start_method("fork", force=True)
    os.chdir(project)
    os.environ["FRUGAL_LOG_DIR"] = logs
    out = open(Path(logs) / "output.txt", "a")  # noqa: SIM115
    os.dup2(out.fileno(), 1)
    os.dup2(out.fileno(), 2)
    sys.argv = ["frugal", "train", *overrides]
    import torch

    torch.set_num_threads(1)
    if before is not None:
        before()
    from frugal import cli

    cli.main(["train", *overrides])


# ------------------------------------------------------------------------------------------------- what a job left
def run_of(logs: Path) -> Path:
    (folder,) = [path for path in (logs / "default").iterdir() if path.is_dir()]
    return folder


def bits(folder: Path) -> str:
    """Everything that training leaves: the artefact, and the last checkpoint's weights, optimizer, step and rates."""
    import torch

    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes())
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        digest.update(repr(_plain(checkpoint[key])).encode())
    return digest.hexdigest()


def _plain(value: object) -> object:
    import torch

    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
