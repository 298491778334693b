"""Around one job: check it, open or skip its folder, run it, and leave a record whatever happens.

Torch-free until the job itself begins. The same function serves a single run, a job of a sweep under any launcher, and
`frugal.run([...])` from Python.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
import time
import traceback
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from frugal import compose, interrupts, manifest, settings
from frugal import folder as folders
from frugal.absent import explain_absent
from frugal.errors import FrugalError, RefusedError, RunError, SettingsError
from frugal.folder import Run
from frugal.identity import WEIGHTS_KEYS, Identity, data_sha256, identify
from frugal.imports import without_scipy_signal
from frugal.measure.ledger import Ledger
from frugal.objectives import reached
from frugal.paths import find_weights, shown
from frugal.record import Record

log = logging.getLogger("frugal")


@dataclass
class Job:
    """One composed job, before anything of it has been done.

    Args:
        overrides: the words of the command that made it, for the folder and for a resume.
        sources: Hydra's config sources where the command extended the search path.
        sweep: the sweep's folder, when this is one job of several.
        number: this job's number within the sweep.
    """

    verb: str
    cfg: DictConfig
    choices: compose.Choices
    overrides: list[str] = field(default_factory=list)
    sources: list[Any] = field(default_factory=list)
    sweep: Path | None = None
    number: int = 0
    identity: Identity | None = None  # where it is known already


# When the job before this one in the same process ended (time.monotonic); the first job's time starts with the process.
_ended_at: float | None = None


def run_overrides(overrides: list[str], verb: str = "train") -> Record:
    """Compose and run one job in this process; the work behind `frugal.run`."""
    if any(len(word) < 2 for word in overrides):  # a text falls apart into letters
        raise SettingsError('overrides: give a list, as in frugal.run(["model=lenet5"])')
    words = compose.expand_resume(overrides)
    cfg, choices = compose.compose(verb, words)
    record, _ = run_job(Job(verb, cfg, choices, words))
    return record


def run_job(job: Job) -> tuple[Record, Path]:
    """Run one job to its record. Returns the record and the folder it lies in.

    Raises FrugalError for bad input and whatever broke the run; by then the record says so, unless nothing had begun:
    a single run that is refused leaves no folder behind.
    """
    global _ended_at
    ledger = Ledger.since_process_start() if _ended_at is None else Ledger(time.monotonic() - _ended_at)
    settings.add_working_directory()
    opened: Run | None = None
    try:
        checked = _check(job)
        execute = None
        if job.sweep is None:  # a bad key costs nothing: no folder is made for it
            if checked is not None:
                raise checked
            _prepare_data(job.cfg)
            execute = _import_execute(job)
        data = ""
        if checked is None:
            try:
                data = data_sha256(job.cfg)
            except FrugalError as error:
                if job.sweep is None:
                    raise
                checked = error
        identity = job.identity or identify(job.cfg, job.choices, job.verb, job.sources, data)
        found = folders.open_in_sweep(job.cfg, identity) if job.sweep else folders.open_single(job.cfg, identity)
        if isinstance(found, Record):
            folder = folders.folder_of(job.cfg, identity, found)
            _note_in_sweep(job, folder)
            return found, folder
        opened = found
        opened.sweep = f"{job.cfg.run.experiment}/{job.sweep.name}" if job.sweep else None
        _note_in_sweep(job, opened.folder)
        _begin(job, opened)
        _show_start(job, opened)
        if checked is not None:
            raise checked
        execute = execute or _import_execute(job)
        execute(job.cfg, opened, ledger)
        return opened.record, opened.folder
    except BaseException as error:
        if opened is not None:
            _record_failure(job, opened, error)
        raise
    finally:
        if opened is not None:
            opened.close()
        _ended_at = time.monotonic()


def _check(job: Job) -> FrugalError | None:
    """The torch-free checks; in a sweep their error is kept until there is a record to write it into."""
    OmegaConf.set_struct(job.cfg, False)
    try:
        if job.verb == "evaluate":
            _leave_to_the_run(job)
        settings.plain(job.cfg)
        settings.check_targets(job.cfg)
        settings.check_values(job.cfg)
        settings.check_rules(job.cfg, job.choices)
        for key in WEIGHTS_KEYS:
            _check_weights(key, OmegaConf.select(job.cfg, key))
    except FrugalError as error:
        return error
    return None


def _leave_to_the_run(job: Job) -> None:
    """Drop what a data option brought along and the run says itself; SettingsError where the command named it."""
    for word in job.overrides:
        if word.lstrip("+~").split("=")[0].split(".")[0].split("@")[0] in settings.FROM_THE_RUN:
            raise SettingsError(
                f"{word}: an evaluation takes that from the run; choose data, measure, trainer or logger"
            )
    for group in settings.FROM_THE_RUN:
        job.cfg[group] = None
        job.choices.pop(group, None)


def _check_weights(key: str, value: Any) -> None:
    if value:
        try:
            find_weights(Path(str(value)))
        except RunError as error:
            raise SettingsError(str(error) if key == "source" else f"{key}: {error}") from None


def _prepare_data(cfg: DictConfig) -> None:
    """Fetch and verify before anything else is made: what is missing is said at once."""
    node = OmegaConf.select(cfg, "data.source")
    if node is not None:
        settings.instantiate(node, "data.source").prepare()


def _import_execute(job: Job) -> Callable[[DictConfig, Run, Ledger], None]:
    """Import the heavy part and check every node against its target's signature."""
    with without_scipy_signal():
        if job.verb == "evaluate":
            from frugal.evaluate import check, execute
        else:
            from frugal.train import check, execute
    check(job.cfg)
    return execute


def _begin(job: Job, run: Run) -> None:
    record = run.record
    record.status, record.error = "running", None
    record.absent, record.energy.reason = {}, None  # those of an end before this one
    try:
        plain, resolved = settings.plain(job.cfg), True
    except SettingsError:  # what cannot be resolved fails this job of a sweep, and its record says so
        plain, resolved = typing.cast(dict[str, Any], OmegaConf.to_container(job.cfg, resolve=False)), False
    record.config = {**plain, "choices": dict(job.choices)}
    info = record.run
    info.name, info.hash, info.source_sha256 = run.folder.name, run.identity.hash, run.identity.source_sha256
    info.experiment, info.seed = str(job.cfg.run.experiment), int(job.cfg.seed)
    info.command = manifest.redact(manifest.command_line())
    info.started_at = info.started_at or manifest.now()
    record.fingerprint.data_sha256 = run.identity.data_sha256
    run.start(OmegaConf.to_yaml(job.cfg, resolve=resolved), job.overrides)


def _show_start(job: Job, run: Run) -> None:
    from frugal import console

    verb = "Continuing" if run.resumed else "Running"
    of = f" of {SweepFolder.jobs}" if SweepFolder.jobs else ""
    where = f" (job {job.number + 1}{of})" if job.sweep else ""
    console.say(f"{verb} {run.identity.name}{where} in {shown(run.folder)}")


def _record_failure(job: Job, run: Run, error: BaseException) -> None:
    """Leave a record that says what happened; take a single run's folder away again where nothing had begun."""
    bad_input = isinstance(error, FrugalError)
    if bad_input and job.sweep is None and not run.resumed and run.record.run.steps_executed == 0:
        run.discard()
        return
    if bad_input and job.sweep is None and run.resumed and run.undo():
        return
    if isinstance(error, RefusedError):
        run.record.status = "refused"
    elif isinstance(error, KeyboardInterrupt | SystemExit):
        run.record.status = "interrupted"
        global interrupted
        interrupted = run.folder
    else:
        run.record.status = "failed"
    run.record.error = one_line(error)
    explain_absent(run.record, trains=job.verb != "evaluate")
    if not bad_input:
        log.debug("%s", "".join(traceback.format_exception(error)))
    try:
        run.save()
    except OSError as problem:  # a full disk, say: the first error is the one to tell
        log.warning("The record could not be written: %s", problem)


def one_line(error: BaseException) -> str:
    if isinstance(error, FrugalError):
        return str(error)
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return interrupts.reason()
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


def _note_in_sweep(job: Job, folder: Path) -> None:
    """Leave word of the job's folder in the sweep's, so that the report finds it under every launcher."""
    if job.sweep is not None:
        try:
            (job.sweep / "jobs").mkdir(parents=True, exist_ok=True)
            (job.sweep / "jobs" / f"{job.number:05d}.txt").write_text(
                f"{os.path.relpath(folder.resolve(), job.sweep.resolve())}\n"  # the logs may move as a whole
            )
        except OSError as error:
            raise RunError(f"{job.sweep}: cannot write the sweep's folder ({error.strerror})") from None


# ---------------------------------------------------------------------------------------------- what Hydra calls
class SweepFolder(Callback):
    """Remembers the folder of the sweep that Hydra begins: its name holds the time, which is read once."""

    path: ClassVar[Path | None] = None
    jobs: ClassVar[int | None] = None  # of a grid; a search does not know beforehand
    made: ClassVar[list[Path]] = []  # what Hydra makes of it, deepest first
    failed: ClassVar[bool] = False  # whether a job failed in this process, even one that could leave no record

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        words = _words(config.hydra.overrides.task)
        if name := search_name(config):  # a search goes on where it was, so its folder has no time in its name
            folder = Path(config.paths.log_dir).expanduser() / str(config.run.experiment) / "sweeps" / name
            with open_dict(config):
                config.hydra.sweep.dir = str(folder)
                config.hydra.overrides.hydra.append(f"hydra.sweep.dir={compose.quote(str(folder))}")
        SweepFolder.path = Path(config.hydra.sweep.dir).resolve()
        SweepFolder.made = folders.missing(SweepFolder.path)
        SweepFolder.failed = False
        given = config.hydra.sweeper.get("params") or {}  # lists that an experiment or a sweep has of itself
        named = {word.partition("=")[0] for word in words}
        SweepFolder.jobs = _count_jobs(
            [*words, *(f"{key}={value}" for key, value in given.items() if key not in named)]
        )
        if SweepFolder.jobs is not None:
            SweepFolder.jobs *= len(config.sweep.variants) or 1
        if name:
            SweepFolder.jobs = None

    @classmethod
    def discard(cls) -> None:
        """Take the folder away again where no job had begun."""
        if cls.path is not None and not (cls.path / "jobs").exists():
            shutil.rmtree(cls.path, ignore_errors=True)
            folders.remove_empty(cls.made)


def _words(node: Any) -> list[str]:
    """A command's words as they were given: an interpolation in them is the job's, not Hydra's."""
    words = OmegaConf.to_container(node, resolve=False)
    assert isinstance(words, list)
    return [str(word) for word in words]


def _count_jobs(words: list[str]) -> int | None:
    """The jobs of a grid: the product of its lists' lengths."""
    parsed = OverridesParser.create().parse_overrides(words)
    if any(override.is_sweep_override() and not override.is_discrete_sweep() for override in parsed):
        return None
    last = {override.get_key_element(): override for override in parsed}  # the last word on a key counts
    return math.prod(sum(1 for _ in o.sweep_iterator()) for o in last.values() if o.is_sweep_override())


def hydra_job(cfg: DictConfig) -> float | list[float] | None:
    """What Hydra calls for a run or for each job of a sweep; at module level so that launchers can send it to
    workers. Errors are kept in `problem`, never raised.

    Returns the figures that a sweep optimizes, plain floats: launchers keep every returned value.
    """
    from hydra.core.hydra_config import HydraConfig

    compose.prepare_hydra()
    job = job_of(typing.cast(DictConfig, HydraConfig.get()), cfg)
    job.identity, sweep = identity, job.sweep
    choosing = "frugal_sweep.search." in str(HydraConfig.get().sweeper.get("_target_"))
    global problem, finished
    problem = finished = None
    try:
        record, finished = run_job(job)
    except RefusedError as error:
        problem = error
        _show_end(how_it_ended(error))
    except (KeyboardInterrupt, SystemExit) as error:
        if sweep is not None:
            raise KeyboardInterrupt("interrupted; the same command goes on where it stopped") from error
        problem = KeyboardInterrupt(_how_to_go_on(job))
    except Exception as error:
        problem = error
        SweepFolder.failed = True
        _show_end(how_it_ended(error))
    else:
        value = reached(record, cfg.sweep.objectives)
        if value is None and choosing:
            _show_end(
                f"{record.run.name} has no value for sweep.objectives={list(cfg.sweep.objectives)}: a failed trial"
            )
        return value
    return None


def how_it_ended(error: BaseException) -> str:
    """Of a job of a sweep, in one line."""
    return f"refused: {error}" if isinstance(error, RefusedError) else f"failed: {one_line(error)}"


def record_death(job: Job, identity: Identity, how: str) -> None:
    """Leave word of a job whose process could not: it failed where nothing had begun, else it can be continued."""
    SweepFolder.failed = True
    try:
        run = folders.open_dead(job.cfg, identity)
    except FrugalError as error:
        log.warning("%s", error)
        return
    if run is None:
        return
    _note_in_sweep(job, run.folder)
    try:
        if not run.resumed:
            _begin(job, run)
        run.record.status, run.record.error = "interrupted" if run.resumed else "failed", how
        explain_absent(run.record, trains=job.verb != "evaluate")
        run.save()
    finally:
        run.close()


def search_name(config: DictConfig) -> str | None:
    """The folder's name of a search, the same for the same space, objectives and settings; None of another sweep."""
    sweeper = config.hydra.sweeper
    if not str(sweeper._target_).startswith("hydra_plugins.frugal_sweep.search."):
        return None
    others = ("sweep.trials=", "launch", "paths.", "logger")
    words = sorted(word for word in _words(config.hydra.overrides.task) if not word.lstrip("+~").startswith(others))
    told = [words, OmegaConf.to_container(sweeper, resolve=False), list(config.sweep.objectives), config.sweep.seed]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:8]
    return f"{sweeper.sampler}-{digest}"


def job_of(node: DictConfig, cfg: DictConfig) -> Job:
    """The job that Hydra's node describes and `cfg` configures."""
    from hydra.types import RunMode

    sweep = Path(node.sweep.dir).resolve() if node.mode == RunMode.MULTIRUN else None
    return Job(
        verb=str(node.job.config_name),
        cfg=cfg,
        choices=compose.choices_of(node),
        overrides=_words(node.overrides.task),
        sources=[
            {"provider": source.provider, "schema": source.schema, "path": source.path}
            for source in node.runtime.config_sources
        ],
        sweep=sweep,
        number=int(node.job.num) if sweep is not None else 0,
    )


def done_before(job: Job) -> tuple[Identity, Record | None] | None:
    """Whose folder the job will have and, where it is done, its record: noted in the sweep like any other.

    None where the job is refused or is bad input, which takes no time to find out again. For launchers that start a
    process for each job that is left.
    """
    if _check(job) is not None:
        return None
    try:
        identity = identify(job.cfg, job.choices, job.verb, job.sources, data_sha256(job.cfg))
    except FrugalError:
        return None
    record = folders.find_completed(job.cfg, identity)
    if record is not None:
        _note_in_sweep(job, folders.folder_of(job.cfg, identity, record))
    return identity, record


def _how_to_go_on(job: Job) -> str:
    """The last line of an interrupted single run."""
    if interrupted is None or not (interrupted / "checkpoints" / "last.ckpt").is_file():
        return "interrupted before the first checkpoint: there is nothing to continue"
    return "interrupted; to continue, give the same command and run.resume=true"


# What broke the last job of this process. Hydra would print about an error that is raised to it, and BasicSweeper would
# lose the batches after it; search sweepers take a None for a failed trial.
problem: BaseException | None = None
identity: Identity | None = None  # of the job to come, where a launcher has found it out already
interrupted: Path | None = None  # the folder of the last job of this process that was interrupted
finished: Path | None = None  # the folder of the last job of this process that ended well


def _show_end(text: str) -> None:
    """Said at once in a sweep, whose other jobs go on; a single run's error is told once, at the end."""
    if SweepFolder.path is not None:
        from frugal import console

        console.say(text)


def finished_folders(sweep: Path) -> Sequence[Path]:
    """The folders of a sweep's jobs, in the jobs' order, each once."""
    from frugal.report.collect import job_folder

    found = [job_folder(path) for path in sorted((sweep / "jobs").glob("*.txt"))]
    return list(dict.fromkeys(found))
