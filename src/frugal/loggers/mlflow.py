"""`logger=mlflow`: metrics, settings, record and the network with its signature in MLflow, in a folder or on a server.

One thread of its own talks to MLflow, so that a slow server holds up nothing. Whatever MLflow raises is said in one
line, and the run goes on without it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import queue
import re
import socket
import tempfile
import threading
import time
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit
from urllib.request import getproxies, url2pathname

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from frugal import console
from frugal.errors import FrugalError
from frugal.loggers.base import QuietLogger, Rows, flatten_record, flatten_settings
from frugal.record import write_atomic

RECORD = "frugal_record.json"  # as an artifact: under its own name a report over logs/ would take it for a second run
POINTER = "mlflow.json"  # in the run's folder: which MLflow run is this one's
CONNECT_TIMEOUT_S = 5.0
FINISH_TIMEOUT_S = 60.0
# MLflow's limits for one request, and for a text
_METRICS, _WORDS, _LENGTH = 1000, 100, 5000
# What is set before its import, where the user has not set it: no reports home, and nothing of its own on the terminal
_MANNERS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_RECORD_STEP = "frugal.record_step"


class MLflow(QuietLogger):
    """One MLflow run for one run of Frugal, begun with the first metric.

    Args:
        folder: the run's; a file there says which MLflow run is its own, so that a resumed run goes on in it.
        experiment: MLflow's experiment, made where it is missing.
        group: becomes the tag `group`, the same for all jobs of a sweep.
        id: of the run and all its continuations; a folder that was begun anew has another.
        tracking_uri: a server's; None: MLFLOW_TRACKING_URI where it is set, else the folder `store`.
        log_model: whether the tested network is handed over.
    """

    title: ClassVar[str] = "MLflow"

    def __init__(
        self,
        folder: str,
        experiment: str = "frugal",
        name: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        id: str | None = None,
        tracking_uri: str | None = None,
        store: str = "mlruns",
        log_model: bool = True,
    ) -> None:
        super().__init__()
        for variable, value in _MANNERS.items():
            os.environ.setdefault(variable, value)
        try:
            import mlflow  # noqa: F401
        except ImportError:
            raise FrugalError(
                'logger=mlflow: MLflow is not installed; install it with: pip install "frugal-ml[mlflow]"'
            ) from None
        for talker in ("mlflow", "urllib3.connectionpool"):  # each of its tries again would be a line on the terminal
            logging.getLogger(talker).setLevel(logging.ERROR)
        self.folder = folder
        self.uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or Path(store).expanduser().resolve().as_uri()
        self.experiment_name = experiment
        self.id = id
        self._tags = {"mlflow.runName": name, "group": group, "tags": ", ".join(tags or []), "frugal.id": id}
        self._log_model = log_model
        self._settings: dict[str, Any] = {}
        self._rows = Rows()
        self._resumed = False
        self._completed = False
        # What the thread owns
        self._client: Any = None
        self._run_id = self._experiment_id = ""
        self._names: dict[str, str] = {}
        self._known: dict[str, int] = {}  # a metric's last step from before the run was cut off
        # What goes from the run to the thread
        self._points: deque[tuple[str, float, int, int]] = deque()
        self._jobs: queue.SimpleQueue[tuple[str, Callable[[], None]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    @property
    def name(self) -> str:
        return self.experiment_name

    @property
    def version(self) -> str | None:
        """MLflow's name for the run, once it has begun."""
        return self._run_id or None

    @property
    def save_dir(self) -> str:
        return self.folder

    def resume_at(self, step: int) -> None:
        self._resumed, self._rows.last = True, step - 1

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        config = vars(params) if isinstance(params, Namespace) else dict(params)
        self._settings |= flatten_settings(config)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if not self._quiet:
            step, new = self._rows.add(metrics, step)
            self._add(new, step)

    @rank_zero_only
    def log_record(self, record: dict[str, Any]) -> None:
        """Numbers become metrics at the step after the last, words become tags, and the whole is an artifact."""
        self._completed = record.get("status") in ("completed", "refused")
        figures, step = flatten_record(record), self._rows.last + 1
        numbers = {key: v for key, v in figures.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        words = {key: _word(value) for key, value in figures.items() if key not in numbers}
        self._add(numbers, step)

        def tell() -> None:
            self._set_tags({**words, _RECORD_STEP: str(step)})
            self._client.log_text(self._run_id, json.dumps(record, indent=1), RECORD)

        self._do("the record cannot be logged", tell)

    @rank_zero_only
    def log_artifact(self, path: Path) -> None:
        if self._log_model:
            self._do(f"{Path(path).name} cannot be logged", lambda: self._hand_over(Path(path)))

    @rank_zero_only
    def close(self) -> None:
        """End the MLflow run; waits a minute at most for what is still to be sent."""
        thread, self._thread = self._thread, None
        if thread is not None:
            status = "FINISHED" if self._completed else "FAILED"
            self._jobs.put(("the run cannot be ended", lambda: self._client.set_terminated(self._run_id, status)))
            self._jobs.put(None)
            thread.join(FINISH_TIMEOUT_S)
            if thread.is_alive() and not self._quiet:
                console.say(f"MLflow: no answer for {FINISH_TIMEOUT_S:.0f} s; what was not sent yet is given up")
        self._quiet = True

    # ------------------------------------------------------------------------------------------- on the run's thread
    def _add(self, metrics: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        self._points.extend((key, float(value), now, step) for key, value in metrics.items())
        self._do("a metric cannot be logged", self._send_points)

    def _do(self, what: str, action: Callable[[], None]) -> None:
        if self._quiet:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
            self._thread.start()
        self._jobs.put((what, action))

    # -------------------------------------------------------------------------------------------- on MLflow's thread
    def _work(self) -> None:
        with self._going_quiet("the run cannot be started"):
            self._start()
        while (job := self._jobs.get()) is not None:
            if not self._quiet:
                with self._going_quiet(job[0]):
                    job[1]()

    def _start(self) -> None:
        from mlflow.tracking import MlflowClient

        url = urlsplit(self.uri)
        local = url.scheme in ("", "file")
        if local:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # else it wants a data base
        else:
            _check_connection(self.uri)
        with _alone(Path(url2pathname(url.path)).parent) if local else contextlib.nullcontext():
            self._client = MlflowClient(self.uri)
            experiment = self._client.get_experiment_by_name(self.experiment_name)
            self._experiment_id = (
                experiment.experiment_id if experiment else self._client.create_experiment(self.experiment_name)
            )
        tags = {key: value for key, value in self._tags.items() if value}
        words = {key: _word(value) for key, value in self._settings.items()}
        pointer = Path(self.folder) / POINTER
        found = self._go_on(pointer) if self._resumed else None
        if found is None:
            self._run_id = self._client.create_run(self._experiment_id, tags=tags).info.run_id
            said = {"run_id": self._run_id, "tracking_uri": self.uri, "id": self.id}
            write_atomic(pointer, json.dumps(said) + "\n")
        else:
            # A param cannot change: what a continuation sets anew stands beside it, as a tag.
            was = found.data.params
            self._set_tags({key: value for key, value in words.items() if was.get(key, value) != value})
            words = {key: value for key, value in words.items() if key not in was}
        self._set_params(words)
        if not local:
            console.say(f"MLflow: {self.uri}/#/experiments/{self._experiment_id}/runs/{self._run_id}")

    def _go_on(self, pointer: Path) -> Any:
        """The MLflow run of the part before, or None where there is none to go on with."""
        try:
            said = json.loads(pointer.read_text())
            if (said["tracking_uri"], said["id"]) != (self.uri, self.id):
                return None
            run = self._client.get_run(said["run_id"])
        except Exception:  # never begun, or deleted since
            return None
        if run.info.lifecycle_stage != "active":
            return None
        self._run_id, self._experiment_id = run.info.run_id, run.info.experiment_id
        self._client.update_run(self._run_id, status="RUNNING")
        # MLflow takes nothing back: of the steps that are done again, what it has already is not sent again.
        ended = run.data.tags.get(_RECORD_STEP)
        for name in run.data.metrics:
            steps = [point.step for point in self._client.get_metric_history(self._run_id, name)]
            self._known[name] = max((step for step in steps if str(step) != ended), default=-1)
            self._names[name] = name
        return run

    def _send_points(self) -> None:
        from mlflow.entities import Metric

        while self._points:
            some = [self._points.popleft() for _ in range(min(len(self._points), _METRICS))]
            named = [(self._metric_name(key), value, at, step) for key, value, at, step in some]
            new = [Metric(*point) for point in named if point[3] > self._known.get(point[0], -1)]
            if new:
                self._client.log_batch(self._run_id, metrics=new)

    def _metric_name(self, key: str) -> str:
        """MLflow's folder keeps a metric in a file of its name: `lr` and `lr/1` cannot both be, nor all signs."""
        if key not in self._names:
            name = re.sub(r"[^\w.\- /]", "_", key).strip("/")
            taken = set(self._names.values())
            for place in reversed([i for i, sign in enumerate(name) if sign == "/"]):
                if name[:place] in taken:
                    name = f"{name[:place]}.{name[place + 1 :]}"
            if any(other.startswith(f"{name}/") for other in taken):
                name = f"{name}.value"
            self._names[key] = name
        return self._names[key]

    def _set_params(self, words: dict[str, str]) -> None:
        from mlflow.entities import Param

        for some in _parts(words):
            self._client.log_batch(self._run_id, params=[Param(_key(key), value) for key, value in some])

    def _set_tags(self, words: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        for some in _parts(words):
            self._client.log_batch(self._run_id, tags=[RunTag(_key(key), value) for key, value in some])

    def _hand_over(self, path: Path) -> None:
        """The artefact as a model that MLflow can load, without a pickle: `frugal.loggers.mlflow_model` reads it."""
        from mlflow.entities import LoggedModelOutput

        from frugal.loggers import mlflow_model

        model = self._client.create_logged_model(self._experiment_id, name=path.stem, source_run_id=self._run_id)
        with tempfile.TemporaryDirectory() as folder:
            mlflow_model.save(path, Path(folder) / "model", self._run_id, model.model_id)
            self._client.log_model_artifacts(model.model_id, str(Path(folder) / "model"))
        self._client.finalize_logged_model(model.model_id, "READY")
        self._client.log_outputs(self._run_id, [LoggedModelOutput(model.model_id, step=self._rows.last + 1)])


def _word(value: Any) -> str:
    return (value if isinstance(value, str) else json.dumps(value))[:_LENGTH]


def _key(key: str) -> str:
    return re.sub(r"[^\w.\- /]", "_", key)


def _parts(words: dict[str, str]) -> Iterator[list[tuple[str, str]]]:
    items = list(words.items())
    for begin in range(0, len(items), _WORDS):
        yield items[begin : begin + _WORDS]


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Jobs of a sweep that begin together would each make the store and the experiment."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _check_connection(uri: str) -> None:
    """Raise OSError within seconds where MLflow itself would try again for minutes."""
    url = urlsplit(uri)
    if url.scheme in ("http", "https") and url.hostname and not getproxies().get(url.scheme):
        port = url.port or (80 if url.scheme == "http" else 443)
        socket.create_connection((url.hostname, port), timeout=CONNECT_TIMEOUT_S).close()
