"""Bad input: one clear line on stderr, an exit code that is not 0, and nothing else changed."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from command import TINY, Outcome, frugal, runs, snapshot
from frugal.record import Record

pytest_plugins = ("users_home",)


@pytest.fixture
def refused(home: Path, tmp_path: Path) -> Callable[..., str]:
    """Calls a command that must be refused; its one line."""

    def call(*words: str) -> str:
        before = snapshot(tmp_path)
        line = frugal(*words).error
        changed = set(before.items()) ^ set(snapshot(tmp_path).items())
        assert not changed, f"{line}\nchanged: {sorted(changed)}"
        return line

    return call


@pytest.mark.parametrize(
    ("words", "named", "hint"),
    [
        # unknown keys
        (["trainer.max_epoch=3"], "trainer.max_epoch=3", "did you mean trainer.max_epochs?"),
        (["+trainer.max_epoch=3"], "trainer.max_epoch", "did you mean trainer.max_epochs?"),
        (["optim.learning_rate=1"], "optim.learning_rate=1", "lr"),
        (["+optim.lrr=1"], "optim.lrr=1", "did you mean lr?"),
        (["+model.network.width=3"], "model.network.width=3", "unknown"),
        (["+preprocess.shifts=1"], "preprocess.shifts=1", "did you mean shift?"),
        (["sead=1"], "sead=1", "did you mean seed?"),
        (["modl=lenet5"], "modl=lenet5", "did you mean model?"),
        # wrong types and values
        (["trainer.max_epochs=many"], "trainer.max_epochs=many", "needs a whole number"),
        (["seed=-1"], "seed=-1", "least value is 0"),
        (["optim.lr=fast"], "optim.lr=fast", "a number"),
        (["data.workers=1.5"], "data.workers=1.5", "whole number"),
        (["data.source.size=9"], "data.source.size=9", "28"),
        (["model.network.hidden=3"], "model.network.hidden=3", "a list"),
        (["measure.latency=quik"], "measure.latency=quik", "did you mean quick?"),
        (["trainer.limit_train_batches=few"], "trainer.limit_train_batches=few", "number"),
        (["precision.mode=16-mixt"], "precision.mode=16-mixt", "did you mean 16-mixed?"),
        (["trainer.max_epochs=null"], "trainer.max_epochs=null", "trainer.max_steps"),
        # unknown options
        (["model=simple"], "model=simple", "did you mean simple_net?"),
        (["experiment=artikel"], "experiment=artikel", "did you mean article?"),
        (["model=null"], "model=null", "one of its options"),
        (["--config-dir", "nowhere"], "nowhere", ""),
        (["model"], "model", "KEY=VALUE"),
        (["optim.lr=${nothing}"], "optim.lr", "nothing"),
        # combinations without meaning
        (["~model"], "model: has no _target_", "choose an option"),
        (["~optim"], "optim: has no _target_", "choose an option"),
        (["+logger.x.y=3"], "logger.x: has no _target_", "too deep"),
        (["measure.batches=[1,0]"], "measure.batches", "least value is 1"),
        (["trainer.max_steps=0"], "trainer.max_steps=0", "trains nothing"),
        (["trainer.limit_train_batches=0"], "trainer.limit_train_batches=0", "above 0"),
        (["paths.log_dir=''"], "paths.log_dir", "FRUGAL_LOG_DIR"),
        (["data.task=regression"], "model=simple_net", "classification"),
        (["+callbacks.mine.early._target_=lightning.pytorch.callbacks.EarlyStopping"], "callbacks.mine", "too deep"),
        # runs that are not there
        (["run.resume=nowhere"], "run.resume=nowhere", "no run's folder"),
        (["run.resume=true"], "run.resume=true", "no cut-off run"),
        (["model.init_from=nowhere"], "nowhere", "does not exist"),
        (["--experimental-rerun", "job.pkl"], "--experimental-rerun", "run.resume=RUN"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_training(words: list[str], named: str, hint: str, refused: Callable[..., str]) -> None:
    line = refused("train", *TINY, *words)
    assert named in line and hint in line
    assert len(line) < 600


@pytest.mark.parametrize(
    "words",
    [
        ["trainer.max_epoch=3,4"],
        ["model=simple_net,simple"],
        ["optim.lr=[1,2"],
        ["seed=1,2", "optim.lrr=3"],
        ["hydra/launcher=nowhere", "seed=1,2"],
    ],
    ids=" ".join,
)
def test_a_sweep_that_cannot_be_composed_begins_nothing(words: list[str], refused: Callable[..., str]) -> None:
    assert words[0].split("=")[0] in (line := refused("train", "-m", *TINY, *words)) or "lrr" in line


def test_verbs(refused: Callable[..., str]) -> None:
    assert "did you mean train?" in refused("trian")
    assert "did you mean evaluate?" in refused("evalute", "x")
    assert "name what to evaluate" in refused("evaluate")
    assert "does not exist" in refused("evaluate", "nowhere")
    assert "no" in refused("report", "nowhere")


# ------------------------------------------------------------------------------------------------- nothing is executed
TARGETS = [
    ["model.network._target_=os.system", "+model.network.command={payload}"],
    ["model._target_=os.system", "+model.command={payload}"],
    ["optim._target_=torch.utils.collect_env.run", "+optim.command={payload}", "optim._partial_=false"],
    ["model.network._target_=torch.utils.collect_env.run", "+model.network.command={payload}"],
    ["model.network._target_=builtins.eval", "+model.network.source='open(1)'"],
    ["model.network._target_=subprocess.run", "+model.network.args={payload}"],
    ["model.network._target_=torch.hub.load", "+model.network.repo_or_dir=here"],
    ["model.network._target_=torch.load", "+model.network.f=payload.pt"],
    ["model.network._target_=frugal.settings.importlib.import_module", "+model.network.name=payload"],
    ["model.network._target_=frugal.folder.os.system", "+model.network.command={payload}"],
    ["model.network._target_=payload.Payload"],
    ["+model.network.hidden_layer._target_=os.system", "+model.network.hidden_layer.command={payload}"],
    ["model.network.hidden=[{{_target_:os.system,command:{payload}}}]"],
    ["+callbacks.x._target_=os.system", "+callbacks.x.command={payload}"],
    ["+callbacks.x._target_=torch.utils.collect_env.run", "+callbacks.x.command={payload}"],
    ["+logger.x._target_=os.system", "+logger.x.command={payload}"],
    ["data.source._target_=os.system", "+data.source.command={payload}"],
    ["data._target_=torch.utils.collect_env.run", "+data.command={payload}"],
    ["preprocess._target_=os.system", "+preprocess.command={payload}"],
    ["+pruning._target_=os.system", "+pruning.command={payload}"],
    ["+mine.deep._target_=os.system", "+mine.deep.command={payload}"],
    ["+hydra.callbacks.x._target_=os.system", "+hydra.callbacks.x.command={payload}"],
    ["hydra.launcher._target_=os.system", "+hydra.launcher.command={payload}"],
    ["hydra.sweeper._target_=torch.utils.collect_env.run", "+hydra.sweeper.command={payload}"],
    ["+hydra.launcher.x._target_=os.system", "+hydra.launcher.x.command={payload}"],
]


@pytest.mark.parametrize("words", TARGETS, ids=" ".join)
def test_targets(words: list[str], home: Path, tmp_path: Path) -> None:
    outcome, marker = call_with_payload(words, home, tmp_path)
    assert "_target_" in outcome.error and not marker.exists()
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    "words", [words for words in TARGETS if words[0].startswith(("model._", "+mine", "hydra."))], ids=" ".join
)
def test_targets_in_a_sweep(words: list[str], home: Path, tmp_path: Path) -> None:
    outcome, marker = call_with_payload(["-m", *words], home, tmp_path)
    assert outcome.code != 0 and not marker.exists()
    assert "_target_" in outcome.out + outcome.err and "Traceback" not in outcome.out + outcome.err
    assert all(Record.read(run).status == "failed" for run in runs(tmp_path / "logs"))


def call_with_payload(words: list[str], home: Path, tmp_path: Path) -> tuple[Outcome, Path]:
    marker = tmp_path / "executed"
    (home / "payload.py").write_text(f"import pathlib\npathlib.Path({str(marker)!r}).touch()\nclass Payload: pass\n")
    torch.save(_Payload(marker), home / "payload.pt")
    return frugal("train", *TINY, *(word.format(payload=f"'touch {marker}'") for word in words)), marker


@pytest.mark.parametrize(
    "text",
    [
        "handlers: {x: {(): os.system, command: 'touch MARKER'}}",
        "handlers: {x: {class: torch.utils.collect_env.run, command: 'touch MARKER'}}",
        "handlers: {x: {class: logging.config.os.system, command: 'touch MARKER'}}",
        "formatters: {x: {(): subprocess.getoutput, cmd: 'touch MARKER'}}",
        "filters: {x: {(): 'ext://os.system', command: 'touch MARKER'}}",
        "handlers: {x: {class: logging.StreamHandler, stream: {(): os.system, command: 'touch MARKER'}}}",
    ],
)
@pytest.mark.parametrize("group", ["job_logging"])
def test_log_handlers_of_a_users_option(text: str, group: str, home: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    folder = home / "configs" / "hydra" / group
    folder.mkdir(parents=True)
    body = text.replace("MARKER", str(marker))
    (folder / "mine.yaml").write_text(f"version: 1\n{body}\nroot: {{handlers: [x]}}\n")
    before = snapshot(tmp_path)
    assert "log handlers come from logging only" in frugal("train", *TINY, f"hydra/{group}=mine").error
    assert not marker.exists() and snapshot(tmp_path) == before


class _Payload:
    """Unpickling it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("shape", ["torch", "old torch", "bare pickle", "inside a checkpoint"])
def test_a_pickle_that_would_execute(shape: str, home: Path, tmp_path: Path) -> None:
    marker, logs = tmp_path / "executed", tmp_path / "logs"
    payload = _Payload(marker)
    assert frugal("train", *TINY).code == 0
    (run,) = runs(logs)
    (run / "model.safetensors").unlink()
    checkpoint = run / "checkpoints" / "last.ckpt"
    if shape == "torch":
        torch.save(payload, checkpoint)
    elif shape == "old torch":
        torch.save(payload, checkpoint, _use_new_zipfile_serialization=False)
    elif shape == "bare pickle":
        checkpoint.write_bytes(pickle.dumps(payload))
    else:
        good = torch.load(checkpoint, weights_only=True)
        torch.save({**good, "hyper_parameters": payload}, checkpoint)
    before = snapshot(tmp_path)
    for words in (
        ("evaluate", str(run)),
        ("evaluate", str(checkpoint)),
        ("train", *TINY, f"model.init_from={checkpoint}"),
        ("train", *TINY, f"model.init_from={run}"),
        ("train", f"run.resume={run}", "trainer.max_epochs=2"),
    ):
        line = frugal(*words).error
        assert "last.ckpt" in line and ("refused" in line or "not a checkpoint" in line), line
        assert not marker.exists()
    assert snapshot(tmp_path) == before  # the run that could not be continued is as it was


def test_what_a_checkpoint_names_passes_the_allow_list(home: Path, tmp_path: Path) -> None:
    """A checkpoint says which classes to build: they are checked like those of a command line."""
    marker = tmp_path / "executed"
    assert frugal("train", *TINY).code == 0
    (run,) = runs(tmp_path / "logs")
    for poisoned in ("model.network", "model", "data.source", "preprocess"):
        checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
        node = checkpoint["frugal"]
        for part in poisoned.split("."):
            node = node[part]
        state = node.get("state")
        node.clear()
        node.update({"_target_": "torch.utils.collect_env.run", "command": f"touch {marker}"})
        if state is not None:
            node["state"] = state
        elif poisoned == "model":
            node["network"] = {"_target_": "frugal.models.simple_net.SimpleNet", "hidden": [256, 128]}
        path = tmp_path / "poisoned.ckpt"
        torch.save(checkpoint, path)
        before = snapshot(tmp_path)
        assert "torch.utils.collect_env.run" in frugal("evaluate", str(path)).error
        assert not marker.exists() and snapshot(tmp_path) == before


# --------------------------------------------------------------------------------------------------------- data files
@pytest.fixture
def closed() -> str:
    """The address of a port on this machine where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/"


def idx(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as file:
        file.write(bytes((0, 0, 8, len(shape))) + b"".join(n.to_bytes(4, "big") for n in shape))
        file.write(bytes(int(torch.tensor(shape).prod())))
    return buffer.getvalue()


def test_missing_data_without_a_network(home: Path, tmp_path: Path, closed: str) -> None:
    data = tmp_path / "data"
    outcome = frugal("train", *TINY, "data=mnist", f"paths.data_dir={data}", f"data.source.mirrors=['{closed}']")
    assert outcome.code != 0
    *told, line = outcome.err.splitlines()
    assert line.startswith("frugal: ") and "train-images-idx3-ubyte.gz: missing" in line
    assert "FRUGAL_DATA_DIR" in line and "data=digits" in line
    assert all(text.startswith("fetching ") for text in told)  # progress, not an error
    assert not [path for path in data.rglob("*") if path.is_file()]
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        ("altered", "train-images-idx3-ubyte.gz"),
        ("truncated", "train-labels-idx1-ubyte.gz"),
        ("altered", "t10k-images-idx3-ubyte.gz"),
        ("empty", "t10k-images-idx3-ubyte.gz"),
        ("truncated", "t10k-labels-idx1-ubyte.gz"),
        ("a folder", "t10k-labels-idx1-ubyte.gz"),
    ],
)
def test_damaged_data(
    damage: str, name: str, home: Path, tmp_path: Path, closed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from frugal.data.mnist import MNIST

    folder = tmp_path / "data" / "mnist"
    folder.mkdir(parents=True)
    good = {n: idx((8, 28, 28) if "images" in n else (8,)) for n in MNIST.checksums}
    monkeypatch.setattr(
        MNIST, "checksums", {n: hashlib.md5(b, usedforsecurity=False).hexdigest() for n, b in good.items()}
    )
    for n, content in good.items():
        (folder / n).write_bytes(content)
    path = folder / name
    content = path.read_bytes()
    if damage == "altered":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
        path.mkdir()
    before = snapshot(tmp_path)
    line = frugal(
        "train", *TINY, "data=mnist", f"paths.data_dir={tmp_path / 'data'}", f"data.source.mirrors=['{closed}']"
    ).error
    assert name in line and ("altered or cut short" in line or "cannot be read" in line)
    assert snapshot(tmp_path) == before


# ---------------------------------------------------------------------------------------------- folders, other models
@pytest.mark.parametrize("words", [["train"], ["train", "-m", "seed=0,1"]], ids=["run", "sweep"])
def test_an_unwritable_folder(words: list[str], home: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    """Tests may run as root, whom no mode stops: a folder below a regular file stops everybody."""
    (tmp_path / "file").write_text("in the way")
    line = refused(*words, *TINY, f"paths.log_dir={tmp_path / 'file' / 'logs'}")
    assert "file/logs" in line and ("Not a directory" in line)


def test_an_experiment_that_leaves_the_folder_for_logs(refused: Callable[..., str]) -> None:
    assert "run.experiment" in refused("train", *TINY, "run.experiment=../../elsewhere")
    assert "run.experiment" in refused("train", *TINY, "run.experiment=")


def test_a_checkpoint_of_another_model(home: Path, tmp_path: Path) -> None:
    assert frugal("train", *TINY).code == 0
    (run,) = runs(tmp_path / "logs")
    before = snapshot(tmp_path)
    for words, why in (
        (("model=lenet5",), "it has no"),
        (("model.network.hidden=[256,64]",), "instead of"),
        (("model.network.hidden=[256]",), "instead of"),
        (("data.source.size=8",), "instead of"),
    ):
        for source in (run, run / "checkpoints" / "last.ckpt", run / "model.safetensors"):
            line = frugal("train", *TINY, *words, f"model.init_from={source}").error
            assert "holds another network" in line and why in line
            assert snapshot(tmp_path) == before
    line = frugal("train", f"run.resume={run}", "model=lenet5", "trainer.max_epochs=2").error
    assert "model." in line and "cannot change on the way" in line
    assert snapshot(tmp_path) == before


def test_files_that_are_no_model(home: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    for name, content in (
        ("a.ckpt", b""),
        ("b.ckpt", b"not a checkpoint"),
        ("c.safetensors", b""),
        ("d.safetensors", (1 << 62).to_bytes(8, "little") + b"{}"),
        ("e.txt", b"text"),
    ):
        (tmp_path / name).write_bytes(content)
    torch.save([1, 2], tmp_path / "f.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "g.ckpt")
    torch.save({"state_dict": 3, "frugal": 4}, tmp_path / "h.ckpt")
    with zipfile.ZipFile(tmp_path / "i.ckpt", "w") as archive:
        archive.writestr("x", "y")
    (tmp_path / "j.ckpt").mkdir()
    for path in sorted(tmp_path.glob("?.*")):
        assert path.name in refused("evaluate", str(path))
        if path.name != "g.ckpt":
            assert path.name in refused("train", *TINY, f"model.init_from={path}")


@pytest.mark.parametrize(
    "words",
    [
        ["+hydra.callbacks.x=${{data.evil}}"],
        ["+hydra.callbacks.x={{_target_:hydra.experimental.callbacks.LogJobReturnCallback,y:${{data.evil}}}}"],
        ["-m", "+hydra.sweeper.x=${{data.evil}}"],
        ['+hydra.callbacks.x="${{oc.create:${{data.evil}}}}"'],
    ],
)
def test_an_interpolation_brings_nothing_into_what_hydra_builds(words: list[str], home: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    evil = f"+data.evil={{_target_:torch.utils.collect_env.run,command:'touch {marker}'}}"
    line = frugal("train", *(word.format() for word in words), evil).error
    assert "collect_env" in line
    assert not marker.exists()
