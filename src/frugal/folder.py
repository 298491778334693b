"""A run's folder: opened or found again, locked, and holding everything that one run leaves.

    logs/<experiment>/<name>-<hash>/
        config.yaml  overrides.yaml  manifest.json  git.patch     what was asked, and of what code and machine
        checkpoints/last.ckpt  checkpoints/best.ckpt              plain containers and tensors
        model.*  metrics.csv  record.json  run.log                what came of it
        progress.bin                                              steps really executed, kept by the kernel through a
        kill

A single run always gets a folder of its own. Within a sweep a job is known by its hash, the source's and the data's, so
that finished jobs are skipped, cut-off ones continued and failed ones run again. Locks are the operating system's, on
the folder itself: a killed process holds none. Torch-free.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import mmap
import os
import platform
import re
import shutil
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from frugal import interrupts
from frugal.errors import RunError
from frugal.identity import Identity, leaves
from frugal.manifest import describe_origin
from frugal.paths import ARTEFACTS, shown
from frugal.record import FILE_NAME, Record, write_atomic

log = logging.getLogger("frugal")

CONFIG, OVERRIDES, MANIFEST, LOG = "config.yaml", "overrides.yaml", "manifest.json", "run.log"
PROGRESS, HEARTBEAT = "progress.bin", "heartbeat.json"


@dataclass
class Run:
    """An opened run: its folder is locked by this process until `close`."""

    folder: Path
    identity: Identity
    record: Record
    resumed: bool = False  # continues an earlier, cut-off or extended run of this folder
    extends: bool = False  # that run had completed
    sweep: str | None = None  # the sweep's name, where the run is one of its jobs
    _lock: int | None = None
    _handlers: list[logging.Handler] = field(default_factory=list)
    _made: list[Path] = field(default_factory=list)  # folders above this one that it made, deepest first
    _before: dict[str, bytes] = field(default_factory=dict)  # a continued run's small files as they were found

    @property
    def id(self) -> str:
        """One name for the run and all its continuations, for loggers: no two runs share it, on any machine."""
        words = (str(self.folder.resolve()), self.record.run.started_at, platform.node())
        return hashlib.sha256("\0".join(words).encode()).hexdigest()[:16]

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def last_checkpoint(self) -> Path:
        return self.checkpoints / "last.ckpt"

    @property
    def best_checkpoint(self) -> Path:
        return self.checkpoints / "best.ckpt"

    @property
    def artefact(self) -> Path:
        """The file that it left for use, or would leave."""
        found = [self.folder / name for name in ARTEFACTS if (self.folder / name).is_file()]
        return found[0] if found else self.folder / "model.safetensors"

    def save(self) -> None:
        self.record.write(self.folder)

    def start(self, config: str, overrides: Sequence[str]) -> None:
        """Write what was asked (`config`, as YAML) and of what; from here on the folder can be continued.

        Nothing is synced: a job of a sweep would wait longer for the disk than it trains, and a machine that stops in a
        run's first seconds leaves no checkpoint to continue from.
        """
        from frugal import console

        self.checkpoints.mkdir(exist_ok=True)
        write_atomic(self.folder / CONFIG, config, sync=False)
        kept = [o for o in overrides if not re.match(r"\+*(run\.resume|hydra[./])", o)]
        write_atomic(self.folder / OVERRIDES, yaml.safe_dump(kept), sync=False)
        manifest, patch = describe_origin()
        manifest |= {"data_sha256": self.identity.data_sha256, "source_sha256": self.identity.source_sha256}
        write_atomic(self.folder / MANIFEST, json.dumps(manifest, indent=1) + "\n", sync=False)
        if patch:
            write_atomic(self.folder / "git.patch", patch, sync=False)
        self.record.run.git_commit = manifest["git"]["commit"]
        self.record.run.git_dirty = manifest["git"]["dirty"]
        self.record.write(self.folder, sync=False)
        handler = logging.FileHandler(self.folder / LOG)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logging.getLogger().addHandler(handler)
        self._handlers.append(handler)
        console.set_log(self.folder / LOG)

    def note(self, **facts: Any) -> None:
        """Add to the manifest what is known only once torch is there."""
        path = self.folder / MANIFEST
        write_atomic(path, json.dumps({**json.loads(path.read_text()), **facts}, indent=1) + "\n", sync=False)

    def discard(self) -> None:
        """Take the folder away again: nothing had begun in it."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        remove_empty(self._made)

    def undo(self) -> bool:
        """Leave a continued run as it was found; False where steps were done since, which no file takes back."""
        found = _small_files(self.folder)
        if found.get(PROGRESS) != self._before.get(PROGRESS):
            return False
        self.close()
        for name in found.keys() - self._before.keys():
            (self.folder / name).unlink(missing_ok=True)
        for name, content in self._before.items():
            if found.get(name) != content:
                write_atomic(self.folder / name, content)
        return True

    def close(self) -> None:
        from frugal import console

        console.set_log(None)
        for handler in self._handlers:
            logging.getLogger().removeHandler(handler)
            handler.close()
        self._handlers.clear()
        if self._lock is not None:
            _unlock(self._lock)
            self._lock = None


# ------------------------------------------------------------------------------------------------- opening a folder
def open_single(cfg: DictConfig, identity: Identity) -> Run:
    """A folder of its own for a new run; or, as `run.resume` says, the one that is continued."""
    experiment = experiment_folder(cfg)
    resume = cfg.run.resume
    if isinstance(resume, str):
        return _continue(Path(resume), identity, cfg)
    if interrupts.requeued():  # by SLURM: it is this very run that goes on, unless it had not begun
        for folder in reversed(list(_candidates(experiment, identity))):
            if _slurm_job(folder) == os.environ.get("SLURM_JOB_ID") and is_cut_off(folder):
                return _continue(folder, identity, cfg)
    if resume:
        for folder in reversed(list(_candidates(experiment, identity))):
            if is_cut_off(folder):
                return _continue(folder, identity, cfg)
        raise RunError(
            f"run.resume=true: no cut-off run of this command under {shown(experiment)}; leave it out to start anew"
        )
    cut_off = [folder for folder in _candidates(experiment, identity) if is_cut_off(folder)]
    if cut_off:
        log.info(
            "The last run of this command was cut off; to continue it add: run.resume=true (%s)", shown(cut_off[-1])
        )
    number = 1
    while True:
        folder = _numbered(experiment, identity, number)
        made = missing(experiment)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
            continue
        except OSError as error:
            raise _unwritable(folder, error) from None
        return Run(folder, identity, Record(), _lock=_lock(folder), _made=made)


def open_in_sweep(cfg: DictConfig, identity: Identity) -> Run | Record:
    """The job's own folder, locked, or the record of the job where it has been done before.

    Waits while another process runs the same job, so that a sweep started twice does each job once.
    """
    experiment = experiment_folder(cfg)
    number = 1
    while True:
        folder = _numbered(experiment, identity, number)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(folder, error) from None
        lock = _lock(folder)
        known = read_record(folder)
        same = known is not None and _same(known, identity)
        if known is None or same:
            if known is not None and known.status == "completed":
                _unlock(lock)
                log.info("Done before: %s", shown(folder / FILE_NAME))
                return known
            resumable = known is not None and known.status in ("running", "interrupted")
            if resumable and (folder / "checkpoints" / "last.ckpt").is_file():
                assert known is not None
                return Run(folder, identity, known, resumed=True, _lock=lock)
            _clear(folder)
            return Run(folder, identity, Record(), _lock=lock)
        _unlock(lock)
        number += 1


def open_dead(cfg: DictConfig, identity: Identity) -> Run | None:
    """The folder of a job of a sweep whose process died: `resumed` where its record says that it was running.

    None where its record says something else already, or another process has it by now.
    """
    for folder in _candidates(experiment_folder(cfg), identity):
        known = read_record(folder)
        if known is None or _same(known, identity):
            if is_locked(folder) or (known is not None and known.status != "running"):
                return None
            return Run(folder, identity, known or Record(), resumed=known is not None, _lock=_lock(folder))
    found = open_in_sweep(cfg, identity)
    return found if isinstance(found, Run) else None


def find_completed(cfg: DictConfig, identity: Identity) -> Record | None:
    """The record of this very job where it has been done before, without locking or making anything."""
    for folder in _candidates(experiment_folder(cfg), identity):
        known = read_record(folder)
        if known is None or _same(known, identity):
            return known if known is not None and known.status == "completed" else None
    return None


def _continue(folder: Path, identity: Identity, cfg: DictConfig) -> Run:
    if not (folder / OVERRIDES).is_file():
        raise RunError(f"run.resume={folder}: no run's folder (it has no {OVERRIDES})")
    lock = _lock(folder, wait=False)
    known = read_record(folder) or Record()
    started = (folder / "checkpoints" / "last.ckpt").is_file()
    if not started:
        log.info("No checkpoint was written yet in %s: starting from the beginning", shown(folder))
        _clear(folder, keep=(LOG, PROGRESS, HEARTBEAT))  # the steps and the time that were lost are the run's still
        return Run(folder, identity, Record(), _lock=lock)
    try:
        _refuse_changes(folder, cfg)
        _refuse_other_data(folder, identity)
    except RunError:
        _unlock(lock)
        raise
    extends = known.status == "completed"
    return Run(folder, identity, known, resumed=True, extends=extends, _lock=lock, _before=_small_files(folder))


# What a checkpoint restores or its position in the data depends on: another value would be ignored, or mixed with the
# old one, and the record would say what was not done.
FIXED = re.compile(
    r"(seed|data|preprocess|model|optim|schedule|selection|distillation|pruning|quantization|precision)\b"
    r"|trainer\.(accumulate_grad_batches|limit_train_batches|overfit_batches)$"
)
FREE = {"data.workers", "data.eval_batch_size", "data.source.root", "data.source.mirrors", "model.init_from"}


def _refuse_changes(folder: Path, cfg: DictConfig) -> None:
    """Raise RunError where a continued run is asked for other settings than it was trained with."""
    was = dict(leaves(OmegaConf.load(folder / CONFIG)))
    for key, value in leaves(OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))):
        if key in was and was[key] != value and FIXED.match(key) and key not in FREE:
            raise RunError(
                f"run.resume={shown(folder)}: {key}={value} cannot change on the way, the run has {was[key]}; "
                f"a new run with model.init_from={shown(folder)} starts from its weights"
            )


def _slurm_job(folder: Path) -> str | None:
    try:
        return json.loads((folder / MANIFEST).read_text()).get("slurm_job")
    except (OSError, ValueError, AttributeError):
        return None


def _refuse_other_data(folder: Path, identity: Identity) -> None:
    """Raise RunError where the data are no longer those that the run was begun with."""
    try:
        was = json.loads((folder / MANIFEST).read_text()).get("data_sha256")
    except (OSError, ValueError, AttributeError):
        return  # nothing to compare with
    if was and identity.data_sha256 and was != identity.data_sha256:
        raise RunError(
            f"run.resume={shown(folder)}: the data have changed since; "
            f"a new run with model.init_from={shown(folder)} starts from its weights"
        )


def folder_of(cfg: DictConfig, identity: Identity, record: Record) -> Path:
    """Where a record that `open_in_sweep` found lies."""
    return experiment_folder(cfg) / (record.run.name or _numbered(Path(), identity, 1).name)


def experiment_folder(cfg: DictConfig) -> Path:
    return Path(cfg.paths.log_dir).expanduser() / str(cfg.run.experiment)


def missing(folder: Path) -> list[Path]:
    """`folder` and those above it that are not there, the deepest first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def remove_empty(folders: Sequence[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):  # not empty: somebody else's by now
            folder.rmdir()


def _small_files(folder: Path) -> dict[str, bytes]:
    """What opening a run may change: all but what its training writes, which is large."""
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.is_file() and path.name not in (*ARTEFACTS, "trace.json")
    }


def _unwritable(folder: Path, error: OSError) -> RunError:
    return RunError(
        f"paths.log_dir: cannot write {shown(folder)} ({error.strerror}); set paths.log_dir or FRUGAL_LOG_DIR"
    )


def _numbered(experiment: Path, identity: Identity, number: int) -> Path:
    base = f"{identity.name}-{identity.hash}"
    return experiment / (base if number == 1 else f"{base}-{number}")


def _candidates(experiment: Path, identity: Identity) -> Iterator[Path]:
    """Folders of this identity, in the order in which they were made."""
    number = 1
    while (folder := _numbered(experiment, identity, number)).is_dir():
        yield folder
        number += 1


def _same(known: Record, identity: Identity) -> bool:
    return (
        known.run.hash == identity.hash
        and known.run.source_sha256 == identity.source_sha256
        and known.fingerprint.data_sha256 in ("", identity.data_sha256)
    )


def _clear(folder: Path, keep: Sequence[str] = (LOG,)) -> None:
    """Make a folder as new, for a job that failed before; its log stays."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    for path in folder.iterdir():
        if path.is_file() and path.name not in keep:
            path.unlink()


def read_record(folder: Path) -> Record | None:
    try:
        return Record.read(folder)
    except RunError:
        return None


def is_cut_off(folder: Path) -> bool:
    """Whether a run began here and neither ended nor is under way."""
    known = read_record(folder)
    return known is not None and known.status in ("running", "interrupted") and not is_locked(folder)


def is_locked(folder: Path) -> bool:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


# A lock is held until its last copy is closed, and a forked child (a data worker) has a copy: it outlives a killed
# parent by seconds, in which the run could not be continued. So children close theirs at once.
_held: set[int] = set()


def _close_in_child() -> None:
    for handle in _held:
        os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)


def _unlock(handle: int) -> None:
    _held.discard(handle)
    os.close(handle)


def _lock(folder: Path, wait: bool = True) -> int:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if not wait:
            os.close(handle)
            raise RunError(f"{shown(folder)}: another process runs this run") from None
        log.info("Another process runs %s: waiting for it", shown(folder))
        fcntl.flock(handle, fcntl.LOCK_EX)
    _held.add(handle)
    return handle


# ------------------------------------------------------------------------------- steps, kept by the kernel
class StepCounter:
    """Optimizer steps really executed in this folder, all parts of a cut-off run together.

    A memory-mapped file of eight bytes: a store a step costs nothing, and the kernel keeps it through a SIGKILL.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / PROGRESS
        if not path.is_file() or path.stat().st_size != 8:
            path.write_bytes(bytes(8))
        self._file = path.open("r+b")
        self._map = mmap.mmap(self._file.fileno(), 8)
        self.value: int = struct.unpack("<q", self._map[:])[0]

    def add(self, steps: int = 1) -> None:
        self.value += steps
        struct.pack_into("<q", self._map, 0, self.value)

    def close(self) -> None:
        self._map.close()
        self._file.close()
