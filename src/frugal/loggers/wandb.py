"""`logger=wandb`: metrics, settings, record and artefact in Weights & Biases, without ever holding up the run.

No key: W&B's files are written into the run's folder, to be sent later with `wandb sync`. No network, or a server that
does not answer: the same, after a wait of some seconds. Whatever W&B raises is said in one line, and the run goes on
without it. Never a prompt.

W&B writes and sends some seconds late, so a kill takes the last rows. A resumed run sends them again, from metrics.csv.
"""

from __future__ import annotations

import os
import re
import ssl
from argparse import Namespace
from collections.abc import Callable, Mapping
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from frugal import console
from frugal.errors import FrugalError
from frugal.loggers.base import QuietLogger, flatten_record, one_line
from frugal.loggers.csv import CSVMetrics

STEP = "trainer/global_step"  # the name that Lightning's own W&B logger gives to its step
CONNECT_TIMEOUT_S = 5.0
INIT_TIMEOUT_S = 20.0
FINISH_TIMEOUT_S = 60.0


class WandB(QuietLogger):
    """One W&B run for one run of Frugal, begun with the first metric.

    Args:
        folder: where W&B's own files go, in a folder `wandb` of their own.
        id: W&B's name for the run. A resumed run with the same `id` goes on in its own W&B run.
        group: what W&B shows together, such as the jobs of a sweep.
        mode: `auto` is online where a key is found, else offline; WANDB_MODE is followed where it is set.
        log_artifact: whether the tested network is handed to W&B as an artifact.
    """

    title: ClassVar[str] = "W&B"

    def __init__(
        self,
        folder: str,
        project: str = "frugal",
        entity: str | None = None,
        name: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        id: str | None = None,
        mode: Literal["auto", "online", "offline", "disabled"] = "auto",
        log_artifact: bool = True,
    ) -> None:
        super().__init__()
        # No reports home, unless the user says so: a silent server would hold up the program's end for 20 s.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        try:
            import wandb  # noqa: F401
        except ImportError:
            raise FrugalError(
                'logger=wandb: W&B is not installed; install it with: pip install "frugal-ml[wandb]"'
            ) from None
        self.folder = folder
        self.mode = mode
        self._artifact_wanted = log_artifact
        self._init_arguments: dict[str, Any] = {
            "project": project,
            "entity": entity,
            "name": name,
            "group": group,
            "tags": list(tags or []),
            "id": id,
            "dir": folder,
        }
        self._run: Any = None
        self._exit_code = 1  # until there is a record: what broke before the fit is not told to loggers

    @property
    def name(self) -> str:
        return str(self._init_arguments["project"])

    @property
    def version(self) -> str | None:
        return self._init_arguments["id"]

    @property
    def save_dir(self) -> str:
        return self.folder

    @property
    def experiment(self) -> Any:
        """The `wandb.Run`, begun if it was not; None on other ranks than 0, and once W&B has failed or was closed."""
        if self._run is None and not self._quiet and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            with self._going_quiet("cannot be started"):
                self._run = self._start()
        return None if self._quiet else self._run

    @rank_zero_only
    def resume_at(self, step: int) -> None:
        """Send the rows that W&B may lack: a kill leaves them in metrics.csv, and nothing of it may be in W&B."""
        self._do(lambda run: self._send_again(run, step), "the metrics before the resume cannot be logged")

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        # Not through W&B's own step: that one may never go back, and the figures of a test come with step 0.
        row = dict(metrics) if step is None else {**metrics, STEP: step}
        self._do(lambda run: run.log(row), "a metric cannot be logged")

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        config = vars(params) if isinstance(params, Namespace) else dict(params)
        self._do(lambda run: run.config.update(config, allow_val_change=True), "the settings cannot be logged")

    @rank_zero_only
    def log_record(self, record: dict[str, Any]) -> None:
        """The record's figures become the run's summary: `throughput/samples_per_s`, `test/accuracy`."""
        self._exit_code = 0 if record.get("status") in ("completed", "refused") else 1
        self._do(lambda run: run.summary.update(flatten_record(record)), "the record cannot be logged")

    @rank_zero_only
    def log_artifact(self, path: Path) -> None:
        if self._artifact_wanted:
            self._do(lambda run: self._hand_over(run, Path(path)), f"{Path(path).name} cannot be logged")

    @rank_zero_only
    def close(self) -> None:
        """End the W&B run; waits a minute at most for what is still to be sent."""
        run, self._run = self._run, None
        if run is not None:
            with self._going_quiet("the W&B run cannot be ended"):
                run.finish(exit_code=self._exit_code)
                if run.offline:
                    console.say(f"W&B: kept offline; send it with: wandb sync {Path(run.dir).parent}")
        self._quiet = True

    def _start(self) -> Any:
        mode = self._resolved_mode()
        try:
            run = self._init(mode)
        except Exception as error:
            if mode != "online":
                raise
            _offline_from_now_on(error)
            # W&B's service still holds the id of the run that it could not begin.
            import wandb

            if wandb.run is None:
                wandb.teardown(exit_code=0)
            run = self._init("offline")
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP, step_sync=True)
        if not run.offline and run.url:
            console.say(f"W&B: {run.url}")
        return run

    def _init(self, mode: Any) -> Any:
        import wandb

        Path(self.folder).mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(
            init_timeout=INIT_TIMEOUT_S,
            finish_timeout=FINISH_TIMEOUT_S,
            console="off",  # Frugal keeps the log itself, and a wrapped stdout breaks bars
            silent=True,
            disable_git=True,  # the record names the commit; W&B would also upload the uncommitted changes
            disable_code=True,
            reinit="create_new",  # a run of somebody else's in this process stays as it is
        )
        # Offline, W&B cannot know whether the run exists: `wandb sync` joins what has one id.
        resume: Any = "allow" if mode == "online" else None
        return wandb.init(mode=mode, resume=resume, settings=settings, **self._init_arguments)

    def _resolved_mode(self) -> str:
        mode = self.mode if self.mode != "auto" else os.environ.get("WANDB_MODE", "auto")
        if mode in ("offline", "dryrun", "disabled"):
            return mode.replace("dryrun", "offline")
        if _unreachable:
            return "offline"
        if not has_key():
            if mode == "online":
                console.say("W&B: no key was found (WANDB_API_KEY or `wandb login`); going on offline")
            return "offline"
        try:
            _check_connection()
        except OSError as error:
            _offline_from_now_on(error)
            return "offline"
        return "online"

    def _send_again(self, run: Any, below: int) -> None:
        # What W&B's server has it says. What an offline file has is not known: all rows go into the new one, and
        # `wandb sync` then brings some of them twice, the same values at the same steps.
        first = 0 if run.offline else run.summary.get(STEP) or 0
        for row in CSVMetrics(self.folder).read(below):
            step = int(row.pop("step"))
            if step >= first:
                run.log({**row, STEP: step})

    def _hand_over(self, run: Any, path: Path) -> None:
        import wandb

        artifact = wandb.Artifact(name=re.sub(r"[^\w.-]", "-", f"{path.stem}-{run.id}"), type="model")
        artifact.add_file(str(path), policy="immutable", skip_cache=True)  # neither copied to a cache nor changed later
        run.log_artifact(artifact)

    def _do(self, action: Callable[[Any], Any], what: str) -> None:
        run = self.experiment
        if run is not None:
            with self._going_quiet(what):
                action(run)


def has_key() -> bool:
    """Whether there is a key for W&B's server (environment, netrc file, a login). Never prompts, never connects."""
    import wandb

    common = wandb.setup().settings
    silent, common.silent = common.silent, True  # else it asks the server for the user's name, to print it
    try:
        return bool(wandb.login(prompt=False, verify=False))
    except Exception as error:  # a key of the wrong length, for one
        console.say(f"W&B: {one_line(error)}")
        return False
    finally:
        common.silent = silent


_unreachable = False  # found out once a process: the jobs of a sweep do not wait for it again


def _offline_from_now_on(error: Exception) -> None:
    global _unreachable
    _unreachable = True
    console.say(f"W&B: no connection ({one_line(error)}); going on offline")


def _check_connection() -> None:
    """Raise OSError within seconds where W&B itself would try again until its time is over. Any answer will do."""
    import wandb

    url = urlsplit(wandb.setup().settings.base_url)
    if not url.hostname or getproxies().get(url.scheme):
        return
    connection: HTTPConnection
    if url.scheme == "http":
        connection = HTTPConnection(url.hostname, url.port, timeout=CONNECT_TIMEOUT_S)
    else:
        # Nothing is told to it here, so whose certificate it is need not be known; W&B checks that for itself.
        anybody = ssl._create_unverified_context()
        connection = HTTPSConnection(url.hostname, url.port, timeout=CONNECT_TIMEOUT_S, context=anybody)
    try:
        connection.request("GET", "/")
        connection.getresponse()
    except HTTPException as error:
        if isinstance(error, OSError):  # hung up without a word
            raise
    finally:
        connection.close()
