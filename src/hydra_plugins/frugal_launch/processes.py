"""`launch=processes`: each job of a sweep in a process of its own, a stated number at a time.

A server that has imported torch and the rest once, and has done nothing with them, forks a child for each job: a job
starts in a tenth of a second. Each child has a slot (cores, or a GPU) and writes to a log of its own. A child that
crashes, is killed or runs out of memory takes nothing else down. Children die with this process.
"""

# No `from __future__ import annotations` here: Hydra loads plugins in a way that dataclasses do not survive with it.
import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, cast

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

PR_SET_PDEATHSIG = 1


@dataclass
class ProcessesConf:
    _target_: str = "hydra_plugins.frugal_launch.processes.Processes"


ConfigStore.instance().store(group="hydra/launcher", name="processes", node=ProcessesConf, provider="frugal")


@dataclass(frozen=True)
class Slot:
    """What one job has of this machine; an empty `cores` leaves the choice to the system."""

    cores: tuple[int, ...] = ()
    gpus: tuple[str, ...] = ()


@dataclass
class Task:
    """All that a child needs."""

    config: DictConfig
    context: HydraContext
    function: TaskFunction
    identity: Any  # frugal.identity.Identity
    slot: Slot
    log: Path
    surroundings: dict[str, Any]


@dataclass
class Child:
    number: int
    task: Task
    process: Any  # of the fork server
    answer: Connection
    began: float


class Processes(Launcher):
    """Starts jobs as slots become free."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    @property
    def at_once(self) -> int:
        """How many jobs may run side by side."""
        return len(slots(self.config))

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        setup_globals()
        self.sweep = Path(str(self.config.hydra.sweep.dir))
        (self.sweep / "jobs").mkdir(parents=True, exist_ok=True)
        self.results: dict[int, JobReturn] = {}
        free, running = deque(slots(self.config)), dict[int, Child]()
        waiting = deque(enumerate(job_overrides, initial_job_idx))
        try:
            while waiting or running:
                while waiting and free:
                    number, overrides = waiting.popleft()
                    child = self._start(number, list(overrides), free[0])
                    if child is not None:
                        free.popleft()
                        running[number] = child
                # of nothing at all, `wait` would wait for ever
                ready = wait([child.process.sentinel for child in running.values()]) if running else []
                for child in [child for child in running.values() if child.process.sentinel in ready]:
                    self._collect(running.pop(child.number))
                    free.append(child.task.slot)
        except KeyboardInterrupt:
            self._end(running)
            raise KeyboardInterrupt("interrupted; the same command goes on where it stopped") from None
        return [self.results[number] for number in sorted(self.results)]

    # ------------------------------------------------------------------------------------------------------- one job
    def _start(self, number: int, overrides: list[str], slot: Slot) -> Child | None:
        """Start a job; None where nothing had to be started."""
        from frugal import console, job, manifest

        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        mine = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        found = job.done_before(job.job_of(config.hydra, mine))
        if found is None or found[1] is not None:  # done, refused or bad input: a process would change nothing
            self.results[number] = run_job(
                hydra_context=self.hydra_context,
                task_function=self.task_function,
                config=config,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
            )
            return None
        surroundings = {
            "environment": dict(os.environ),
            "folder": os.getcwd(),
            "path": list(sys.path),
            "argv": list(sys.argv),
            "command": list(manifest.command),
            "git": manifest.git_state(),
            "jobs": job.SweepFolder.jobs,
        }
        log = self.sweep / "jobs" / f"{number:05d}.log"
        task = Task(config, self.hydra_context, self.task_function, found[0], slot, log.resolve(), surroundings)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["hydra_plugins.frugal_launch._warm"])
        answer, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_run, args=(task, theirs), name=f"job {number}")
        process.start()
        theirs.close()
        console.say(f"Running {found[0].name} ({_of(number)}) in a process of its own, {process.pid}")
        return Child(number, task, process, answer, time.monotonic())

    def _collect(self, child: Child) -> None:
        """Say how a job ended, and leave a record where it could not."""
        from frugal import console, job

        code, took = child.process.exitcode, time.monotonic() - child.began
        answer: Any = None
        if child.answer.poll():
            try:
                answer = child.answer.recv()
            except (EOFError, OSError):
                answer = None
        child.answer.close()
        result = JobReturn()
        result.overrides = list(child.task.config.hydra.overrides.task)
        result.return_value = None
        result.status = JobStatus.COMPLETED
        name = f"{child.task.identity.name} ({_of(child.number)})"
        if answer is None:  # it could not even say that it failed
            how = f"killed by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"
            config = child.task.config
            mine = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
            job.record_death(job.job_of(config.hydra, mine), child.task.identity, how)
            console.say(f"{name} was {how} after {took:.1f} s; see {_shown(child.task.log)}")
        else:
            result.return_value, error = answer
            job.SweepFolder.failed |= error is not None and not error.startswith("refused")
            console.say(f"{name}: {error or 'completed'} after {took:.1f} s")
        self.results[child.number] = result

    def _end(self, running: dict[int, Child]) -> None:
        """Ask all children to stop with a checkpoint; when interrupted again, at once; then they are killed."""
        from frugal import console

        if running:
            console.say(f"Stopping {len(running)} jobs, with a checkpoint each; once more stops at once.")
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            for child in running.values():
                if child.process.is_alive() and child.process.pid is not None:
                    os.kill(child.process.pid, number)
            try:
                for child in list(running.values()):
                    child.process.join()
                    del running[child.number]
                return
            except KeyboardInterrupt:
                continue


def slots(config: DictConfig) -> list[Slot]:
    """The parts of this machine that jobs have side by side: `launch.jobs`, or as many as there are GPUs, or cores for
    the jobs' threads. A job of several devices has a slot of several."""
    devices, threads = int(config.trainer.devices or 1), int(config.trainer.threads or 1)
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    gpus = visible_gpus() if str(config.trainer.accelerator) in ("auto", "gpu", "cuda") else []
    if len(gpus) >= devices:
        jobs = config.launch.jobs or len(gpus) // devices
        share = max(1, len(cores) // jobs)
        return [
            Slot(_part(cores, i, share, jobs), tuple(gpus[(i * devices + k) % len(gpus)] for k in range(devices)))
            for i in range(jobs)
        ]
    jobs = config.launch.jobs or max(1, (len(cores) or os.cpu_count() or 1) // (devices * threads))
    share = len(cores) // jobs
    return [Slot(_part(cores, i, share, jobs)) for i in range(jobs)]


def _part(cores: list[int], i: int, share: int, jobs: int) -> tuple[int, ...]:
    """The `i`-th of the jobs' equal parts; none where there are more jobs than cores."""
    return tuple(cores[i * share : (i + 1) * share]) if share * jobs <= len(cores) else ()


def visible_gpus() -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES, without torch or CUDA."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name for name in chosen.split(",") if name.strip() and name.strip() != "-1"]
    folder = Path("/proc/driver/nvidia/gpus")
    return [str(i) for i, _ in enumerate(folder.iterdir())] if folder.is_dir() else []


def _of(number: int) -> str:
    from frugal.job import SweepFolder

    return f"job {number + 1} of {SweepFolder.jobs}" if SweepFolder.jobs else f"job {number + 1}"


def _shown(path: Path) -> str:
    from frugal.paths import shown

    return shown(path)


# ------------------------------------------------------------------------------------------------------- in the child
def _run(task: Task, answer: Connection) -> None:
    """One job, in a fork of the server."""
    _settle(task)
    from frugal import cli, compose, interrupts, job, manifest

    cli.set_up_logging()
    manifest.command[:] = task.surroundings["command"]
    manifest.git_state = lambda: task.surroundings["git"]  # type: ignore[assignment]  # of when the command began, as in one process
    job.SweepFolder.jobs = task.surroundings["jobs"]
    compose.prepare_hydra()
    setup_globals()
    job.identity = task.identity
    try:
        with interrupts.raising():
            result = run_job(
                hydra_context=task.context,
                task_function=task.function,
                config=task.config,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
            )
        value = result.return_value
        error = None if job.problem is None else job.how_it_ended(job.problem)
        answer.send((value if value is None or isinstance(value, float | list) else None, error))
    except KeyboardInterrupt:
        answer.send((None, interrupts.reason()))
    answer.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # without torch's slow leaving


def _settle(task: Task) -> None:
    """Make this process the job's own: it dies with the command, has its slot, its log and its own signals."""
    parent = multiprocessing.parent_process()
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    # The server ends when the last process that may ask it for children has: let that be the command, and not its jobs.
    alive = getattr(forkserver._forkserver, "_forkserver_alive_fd", None)
    if alive is not None:
        os.close(alive)
        forkserver._forkserver._forkserver_alive_fd = None  # type: ignore[attr-defined]
    if parent is None or not parent.is_alive():
        os._exit(1)
    os.setpgid(0, 0)  # Ctrl-C goes to the command, which passes it on once
    surroundings = task.surroundings
    os.environ.clear()
    os.environ.update(surroundings["environment"])
    if task.slot.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(task.slot.gpus)
    if task.slot.cores:
        os.sched_setaffinity(0, task.slot.cores)
    os.chdir(surroundings["folder"])
    sys.path[:] = surroundings["path"]
    sys.argv[:] = surroundings["argv"]
    out = os.open(task.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.close(out)
    # A child of a fork server would start its data workers through a server of its own, which outlives a SIGKILL.
    cast(Any, multiprocessing).set_start_method("fork", force=True)
