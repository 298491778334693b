"""The processes that train one job together: who starts them, how they find each other, and how they end.

The process that owns the run's folder is rank 0. It starts the others itself, as `python -m frugal.ranks FILE`, or
finds them: under torchrun, and under srun with several tasks, they came with it and wait for its word (`follow`).
Either way they do the training part of `train.execute` and nothing else; the rest happens in rank 0 alone, after they
have ended. All that they say to each other before there is a process group goes through one TCPStore.

Torch-free until a job of several ranks begins.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from omegaconf import DictConfig, OmegaConf

from frugal import settings
from frugal.errors import FrugalError, RefusedError, RunError, SettingsError
from frugal.folder import Run

if TYPE_CHECKING:
    import torch

log = logging.getLogger("frugal")

_GATHERING_S = 600.0  # in which all ranks must have built what they train
_LEAVING_S = 30.0  # for ranks to end by themselves after the training
_TOLD_S = 5.0  # for another rank's error to arrive, where rank 0 only sees that a connection broke
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Place:
    """This process among those that somebody else started together; alone where nobody did."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    node: int = 0
    starter: str | None = None  # torchrun or srun


def place() -> Place:
    """From torchrun's and SLURM's variables. A batch script's own SLURM_NTASKS starts nothing: srun's step does."""
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")
        rank, world, local_rank, local_world, node = (int(env[name]) for name in names)
        return Place(rank, world, local_rank, local_world, node, "torchrun")
    tasks = int(env.get("SLURM_STEP_NUM_TASKS", "1"))
    if tasks > 1:
        local, node = int(env["SLURM_LOCALID"]), int(env["SLURM_NODEID"])
        nodes = int(env.get("SLURM_STEP_NUM_NODES", env.get("SLURM_NNODES", "1")))
        return Place(int(env["SLURM_PROCID"]), tasks, local, tasks // nodes, node, starter="srun")
    return Place()


def of_job(cfg: DictConfig) -> int:
    """How many ranks a job has."""
    return int(cfg.trainer.devices) * int(cfg.trainer.num_nodes)


def check(cfg: DictConfig) -> None:
    """Raises SettingsError where the job asks for other ranks than there are or than it can start."""
    from frugal.precision import device_type

    if needs_group(cfg) and device_type(cfg) not in ("cpu", "cuda"):
        raise RefusedError(
            f"trainer.accelerator={cfg.trainer.accelerator}: ranks talk over gloo on CPUs and NCCL on NVIDIA GPUs, not "
            f"on {device_type(cfg)}; set trainer.accelerator=cpu or strategy=single"
        )
    here, wanted = place(), of_job(cfg)
    asked = f"trainer.devices={cfg.trainer.devices}"
    if int(cfg.trainer.num_nodes) > 1:
        asked += f" trainer.num_nodes={cfg.trainer.num_nodes}"
    if here.world > 1 and wanted != here.world:
        fitting = f"trainer.devices={here.local_world}"
        if here.world > here.local_world:
            fitting += f" trainer.num_nodes={here.world // here.local_world}"
        raise SettingsError(
            f"{asked}: the job has {wanted} ranks, but {here.starter} started {here.world} processes; "
            f"set strategy=ddp (or another) {fitting}"
        )
    if here.world == 1 and int(cfg.trainer.num_nodes) > 1:
        raise SettingsError(
            f"{asked}: one process starts ranks on its own machine only; on several use torchrun --nnodes, or srun"
        )


# --------------------------------------------------------------------------------------------------------- rank 0
@dataclass
class Group:
    """The ranks of one job, as one of them sees them."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    node: int
    store: Any  # a torch.distributed.Store
    prefix: str = "job0"
    children: list[subprocess.Popen[bytes]] = field(default_factory=list)
    begun: bool = False
    excepthook: Callable[..., Any] = sys.excepthook

    @property
    def first(self) -> bool:
        return self.rank == 0

    def meet(self, cfg: DictConfig, run: Run, device: torch.device) -> None:
        """All is built: connect. Rank 0 only now tells the others what to build, since it alone prepares data, and
        waits for them."""
        if self.first:
            self._call(cfg, run)
        else:
            self.store.set(f"{self.prefix}/ready/{self.rank}", "")
        self.connect(cfg, device)

    def _call(self, cfg: DictConfig, run: Run) -> None:
        self.begun = True
        word = {
            "cfg": settings.plain(cfg),
            "folder": str(run.folder.resolve()),
            "resumed": run.resumed,
            "extends": run.extends,
        }
        self.store.set(self.prefix, json.dumps(word))
        until = time.monotonic() + _GATHERING_S
        waiting = set(range(1, self.size))
        while waiting:
            self.raise_failure()
            waiting = {rank for rank in waiting if not self.store.check([f"{self.prefix}/ready/{rank}"])}
            if time.monotonic() > until:
                raise RunError(f"rank {min(waiting)} was not ready to train after {_GATHERING_S:.0f} s")
            time.sleep(0.01 if waiting else 0)

    def connect(self, cfg: DictConfig, device: torch.device) -> None:
        """Make torch's default process group of this job's ranks."""
        import torch.distributed as dist

        node, self.excepthook = cfg.strategy, sys.excepthook  # which torch replaces, anew for each group
        offloads = bool(node.get("cpu_offload"))
        backend = "gloo" if device.type != "cuda" else "cpu:gloo,cuda:nccl" if offloads else "nccl"
        with _on_this_machine(self.size == self.local_size):
            dist.init_process_group(
                backend,
                store=dist.PrefixStore(f"{self.prefix}/group", self.store),
                rank=self.rank,
                world_size=self.size,
                timeout=timedelta(seconds=float(node.get("timeout_s") or 1800)),
                device_id=device if device.type == "cuda" else None,
            )
        if self.first and backend != "gloo":
            threading.Thread(target=self._abort_on_failure, daemon=True).start()

    def _abort_on_failure(self) -> None:
        """Gloo notices when a rank is gone, NCCL waits for it: break the waiting off, so that the job fails."""
        import torch.distributed as dist

        world = dist.group.WORLD
        while dist.is_initialized() and dist.group.WORLD is world:
            time.sleep(1.0)
            if self.failure() is not None and world is not None:
                world.abort()
                return

    def disconnect(self) -> None:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()
            sys.excepthook = self.excepthook

    def failure(self) -> BaseException | None:
        """What ended another rank, if anything: its own error, or that it is gone."""
        if self.store.check([f"{self.prefix}/error"]):
            told = json.loads(self.store.get(f"{self.prefix}/error"))
            log.debug("%s", told["traceback"])
            if told["ours"]:
                return SettingsError(told["error"]) if told["ours"] == "SettingsError" else RunError(told["error"])
            return RunError(f"rank {told['rank']} failed: {told['error']} (its traceback is in run.log)")
        for rank, child in enumerate(self.children, start=1):
            code = child.poll()
            if code is not None and code < 0:
                return RunError(f"rank {rank} was killed by {signal.Signals(-code).name} while the job trained")
            if code:
                return RunError(f"rank {rank} ended with exit code {code} while the job trained")
        return None

    def raise_failure(self) -> None:
        problem = self.failure()
        if problem is not None:
            raise problem

    def cause_of(self, error: BaseException) -> BaseException:
        """What to tell of an error of rank 0: where another rank failed first, that."""
        if isinstance(error, FrugalError) or not isinstance(error, Exception) or not _is_broken_connection(error):
            return error
        until = time.monotonic() + _TOLD_S
        while (problem := self.failure()) is None and time.monotonic() < until:
            time.sleep(0.1)
        return problem or error

    def wait(self) -> None:
        """Until the other ranks have left the training."""
        until = time.monotonic() + _LEAVING_S
        for rank in range(1, self.size):
            while not self.store.check([f"{self.prefix}/left/{rank}"]):
                self.raise_failure()
                if time.monotonic() > until:
                    raise RunError(f"rank {rank} had not ended {_LEAVING_S:.0f} s after the training")
                time.sleep(0.01)


@contextlib.contextmanager
def gather(cfg: DictConfig) -> Iterator[Group | None]:
    """The ranks of a job of several, None of a job in this process alone; as rank 0.

    On leaving, all others have ended or, under torchrun and srun, wait for the next job.
    """
    if not needs_group(cfg):
        yield None
        return
    here, folder = place(), None
    if here.world > 1:
        group = _Outside.group()
    else:
        folder = Path(tempfile.mkdtemp(prefix="frugal-ranks-"))
        group = _start(of_job(cfg), folder)
    try:
        yield group
        group.disconnect()
        group.wait()
    except BaseException as error:
        cause = group.cause_of(error)
        group.disconnect()
        for child in group.children:
            child.kill()
        if not group.begun:
            group.store.set(group.prefix, json.dumps(None))
        group.store.set(f"{group.prefix}/over", "")
        if cause is error:
            raise
        raise cause from error
    finally:
        for child in group.children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_LEAVING_S)
            if child.poll() is None:
                child.kill()
                child.wait()
        if folder is not None:
            for words in sorted(folder.glob("*.log")):
                if text := words.read_text(errors="replace").strip():
                    log.debug("%s: %s", words.stem, text[-4000:])
            shutil.rmtree(folder, ignore_errors=True)


def needs_group(cfg: DictConfig) -> bool:
    """Whether a job trains in a process group: every strategy but `single` does, one rank alone too."""
    return bool((cfg.get("strategy") or {}).get("_target_"))


def _start(size: int, folder: Path) -> Group:
    """Start ranks 1 and up on this machine."""
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # takes a free port itself
    group = Group(0, size, 0, size, 0, store)
    for rank in range(1, size):
        word = {"port": store.port, "rank": rank, "size": size, "parent": os.getpid()}
        file = folder / f"rank{rank}.json"
        file.write_text(json.dumps(word))
        env = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
        with file.with_suffix(".log").open("wb") as words:
            group.children.append(
                subprocess.Popen(
                    [sys.executable, "-m", "frugal.ranks", str(file)],
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=words,
                )
            )
    return group


def _is_broken_connection(error: BaseException) -> bool:
    """Whether this is how another rank's end looks from here."""
    text = f"{type(error).__module__}.{type(error).__name__}: {error}".lower()
    return any(sign in text for sign in ("gloo", "nccl", "connection", "distbackend", "distnetwork", "store"))


@contextlib.contextmanager
def _on_this_machine(local: bool) -> Iterator[None]:
    """Ranks of one machine talk over its loopback, whatever its name resolves to."""
    if not local or not sys.platform.startswith("linux") or "GLOO_SOCKET_IFNAME" in os.environ:
        yield
        return
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    try:
        yield
    finally:
        del os.environ["GLOO_SOCKET_IFNAME"]


# ------------------------------------------------------------------------------------------ under torchrun and srun
class _Outside:
    """The store of processes that somebody else started, and the jobs done through it."""

    store: Any = None
    jobs = int(os.environ.get("FRUGAL_RANKS_JOB", "0"))  # those before this process began anew

    @classmethod
    def open(cls) -> Any:
        if cls.store is None:
            import torch.distributed as dist

            here = place()
            if here.starter == "srun":
                from lightning.fabric.plugins.environments import SLURMEnvironment

                slurm = SLURMEnvironment(auto_requeue=False)
                address, port = slurm.main_address, slurm.main_port
                cls.store = dist.TCPStore(address, port, is_master=here.rank == 0, wait_for_workers=False)
            else:  # the agent's own store; a name of ours keeps clear of its keys
                address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
                agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
                tcp = dist.TCPStore(address, port, is_master=not agent and here.rank == 0, wait_for_workers=False)
                attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
                cls.store = dist.PrefixStore(f"frugal/{attempt}", tcp)
        return cls.store

    @classmethod
    def group(cls) -> Group:
        here = place()
        group = Group(here.rank, here.world, here.local_rank, here.local_world, here.node, cls.open())
        group.prefix = f"job{cls.jobs}"
        cls.jobs += 1
        return group


def dismiss() -> None:
    """Of rank 0, when its command is over: let the processes that wait for a job go."""
    here = place()
    if here.world == 1 or here.rank != 0:
        return
    group = _Outside.group()
    group.store.set(group.prefix, json.dumps("end"))
    until = time.monotonic() + _LEAVING_S
    for rank in range(1, group.size):  # srun's store is in this process: it must outlive them
        while not group.store.check([f"gone/{rank}"]) and time.monotonic() < until:
            time.sleep(0.01)


def follow() -> int:
    """Of the other ranks under torchrun and srun: train what rank 0 says until it has no more. The exit code: a job
    that fails is rank 0's to tell, by its own."""
    settings.add_working_directory()
    try:
        while True:
            group = _Outside.group()
            word = _word(group)
            if word == "end":
                group.store.set(f"gone/{group.rank}", "")
                return 0
            if word is not None:
                watching = threading.Event()
                threading.Thread(target=_leave_with, args=(group, watching), daemon=True).start()
                if not _train(group, word):
                    _begin_anew()
                watching.set()
    except (RuntimeError, OSError) as error:
        print(f"frugal: rank {place().rank}: rank 0 is gone ({error})", file=sys.stderr)
        return 1


def _leave_with(group: Group, done: threading.Event) -> None:
    """Where rank 0's job has failed and this rank still waits for it in the middle of a step, begin anew."""
    while not done.wait(1.0):
        with contextlib.suppress(RuntimeError):
            if group.store.check([f"{group.prefix}/over"]) and not done.wait(_TOLD_S):
                _begin_anew()


def _begin_anew() -> NoReturn:
    """Replace this process by a fresh one that waits for the next job: torch closes no connection that anything still
    refers to, and whoever started these processes must not see one end."""
    os.environ["FRUGAL_RANKS_JOB"] = str(_Outside.jobs)
    for handle in os.listdir("/proc/self/fd") if Path("/proc/self/fd").is_dir() else ():
        if int(handle) > 2:
            with contextlib.suppress(OSError):  # that of the listing itself
                os.set_inheritable(int(handle), False)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _word(group: Group) -> Any:
    """What rank 0 says, however long that takes."""
    while not group.store.check([group.prefix]):
        time.sleep(0.02)
    return json.loads(group.store.get(group.prefix))


# ------------------------------------------------------------------------------------------------- ranks 1 and up
def main(file: str) -> int:
    """`python -m frugal.ranks FILE`: one rank of one job."""
    word = json.loads(Path(file).read_text())
    _die_with(int(word["parent"]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; rank 0 tells what it means
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", word["port"], is_master=False, wait_for_workers=False)
    group = Group(word["rank"], word["size"], word["rank"], word["size"], 0, store)
    settings.add_working_directory()
    import frugal.train  # takes seconds, in which rank 0 reads its data

    del frugal.train
    job = _word(group)
    return 0 if job is None or _train(group, job) else 1


def _die_with(parent: int) -> None:
    """Have the kernel end this process when its parent ends, however it does."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that
        os._exit(1)


def _train(group: Group, word: dict[str, Any]) -> bool:
    """The training part of one job; False where it failed, which rank 0 is told."""
    from frugal import train
    from frugal.identity import Identity
    from frugal.record import Record

    logging.disable(logging.WARNING)  # rank 0 says it
    cfg = OmegaConf.create(word["cfg"])
    assert isinstance(cfg, DictConfig)
    nobody = Identity("", "", "", "")
    run = Run(Path(word["folder"]), nobody, Record(), resumed=word["resumed"], extends=word["extends"])
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            train.follow(cfg, run, group)
    except (KeyboardInterrupt, SystemExit):  # all stop together, with a checkpoint
        pass
    except BaseException as error:
        _tell(group, error)
        return False
    finally:
        group.disconnect()
        logging.disable(logging.NOTSET)
        group.store.set(f"{group.prefix}/left/{group.rank}", "")
    return True


def _tell(group: Group, error: BaseException) -> None:
    """Leave word of an error; the first one counts, those after it mostly follow from it."""
    first = next(iter(str(error).strip().splitlines()), "")
    told = {
        "rank": group.rank,
        "ours": type(error).__name__ if isinstance(error, FrugalError) else None,
        "error": str(error) if isinstance(error, FrugalError) else f"{type(error).__name__}: {first}",
        "traceback": "".join(traceback.format_exception(error)),
    }
    with contextlib.suppress(RuntimeError):
        if group.store.add(f"{group.prefix}/errors", 1) == 1:
            group.store.set(f"{group.prefix}/error", json.dumps(told))


if __name__ == "__main__":
    code = main(sys.argv[1])
    sys.stderr.flush()
    os._exit(code)
