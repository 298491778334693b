"""`deploy=torch_export`: the file says what the network says, its bytes follow from it, and no code of it is run."""

from __future__ import annotations

import copy
import io
import json
import zipfile
from pathlib import Path

import pytest
import torch

import frugal
from frugal import artefact
from frugal.deploy.exported_network import ExportedNetwork, _fault
from frugal.deploy.torch_export import TorchExport
from frugal.errors import RunError
from frugal.models.gpt import GPT
from frugal.models.lenet5 import LeNet5


@pytest.fixture(scope="module")
def network() -> LeNet5:
    torch.manual_seed(0)
    return LeNet5([1, 28, 28], 10).eval()


@pytest.fixture(scope="module")
def written(network: LeNet5) -> ExportedNetwork:
    technique = TorchExport()
    found = technique.finalize(network, [torch.randn(5, 1, 28, 28)])
    assert isinstance(found, ExportedNetwork) and technique.figures()["largest_difference"] < 1e-6
    return found


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_it_says_what_the_network_says(network: LeNet5, written: ExportedNetwork, batch: int) -> None:
    x = torch.randn(batch, 1, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(written.train()(x), network(x))
    assert copy.deepcopy(written)(x).shape == (batch, 10)


def test_it_has_the_network_s_weights(network: LeNet5, written: ExportedNetwork) -> None:
    assert list(written.plain_state()) == list(network.state_dict())
    assert sum(weight.numel() for weight in written.plain_weights().values()) == 431_080
    assert torch.equal(written.plain_state()["conv1.weight"], network.conv1.weight)


def test_bytes_follow_from_network_and_description(written: ExportedNetwork) -> None:
    once, again = written.described("{}"), ExportedNetwork(written.described("other")).described("{}")
    assert once == again and ExportedNetwork(once).description() == "{}"
    assert str(Path(__file__).parents[2]).encode() not in once  # no path of this machine
    with zipfile.ZipFile(io.BytesIO(once)) as archive:
        assert {item.date_time[0] for item in archive.infolist()} == {1980}


def test_a_language_model_takes_shorter_texts() -> None:
    torch.manual_seed(0)
    gpt = GPT(vocabulary=31, block_size=16, separator=3, layers=1, heads=2, width=16, positions="relative").eval()
    tokens = torch.randint(0, 31, (3, 16))
    exported = TorchExport().finalize(gpt, [tokens])
    with torch.no_grad():
        torch.testing.assert_close(exported(tokens[:, :7]), gpt(tokens[:, :7]))


def tampered(content: bytes, name: str, change: object) -> bytes:
    """The archive with one member's text put through `change`, or added."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(out, "w") as target:
        for item in source.infolist():
            data = source.read(item)
            target.writestr(item.filename, change(data.decode()) if item.filename == name else data)  # type: ignore[operator]
        if name not in source.namelist():
            target.writestr(name, change(""))  # type: ignore[operator]
    return out.getvalue()


MODEL = "archive/models/model.json"


@pytest.mark.parametrize(
    ("name", "old", "new", "says"),
    [
        (MODEL, "torch.ops.aten.relu.default", "os.system", "its graph calls os.system"),
        (MODEL, "Symbol('", "exit(1) + Symbol('", "a size is exit"),
        (MODEL, "positive=True", "positive=exit()", "a size is Symbol"),
        (MODEL, '"guards_code": []', '"guards_code": ["exit(1)"]', "it holds code"),
        ("archive/data/weights/model_weights_config.json", '"use_pickle": false', '"use_pickle": true', "pickle"),
        ("archive/data/sample_inputs/model.pt", "", "x", "sample_inputs"),
        ("archive/data/constants/custom_obj_0", "", "x", "custom_obj_0"),
    ],
)
def test_a_file_that_would_run_code_is_refused(
    written: ExportedNetwork, name: str, old: str, new: str, says: str
) -> None:
    content = tampered(written.content, name, lambda text: text.replace(old, new, 1) if old else new)
    with pytest.raises(RunError, match=says):
        ExportedNetwork(content)


def test_sizes_by_hand() -> None:
    size = "Add(Mul(Integer(2), Symbol('s62', positive=True, integer=True)), Integer(-1))"
    assert _fault({"expr_str": size}) is None
    for bad in ("__import__('os')", "Symbol('s1', positive=True, integer=True).x", "eval(1)", "Integer.mro"):
        assert _fault([{"a": {"expr_str": bad}}]) is not None


def test_what_is_no_file_of_torch_export_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.pt2"
    for content in (b"", b"PK", b"\0" * 100):
        file.write_bytes(content)
        with pytest.raises(RunError, match=r"model\.pt2: not a torch\.export network"):
            artefact.load(file)


def test_a_run_leaves_a_file_that_is_tested_timed_and_trained_on(tmp_path: Path) -> None:
    words = ["model=lenet_300_100", "trainer.max_epochs=1", "trainer.threads=1", "measure.batches=[1]", "logger=none"]
    record = frugal.run([*words, "deploy=torch_export"])
    folder = tmp_path / "logs" / "default" / record.run.name
    file = folder / "model.pt2"
    assert record.size.file_bytes == file.stat().st_size and not (folder / "model.safetensors").exists()
    assert [(row.backend, row.status) for row in record.latency] == [("eager", "dense"), ("torch.export", "dense")]
    again = frugal.run([f"source={file}", "measure=none"], verb="evaluate")
    assert again.quality["test/accuracy"] == record.quality["test/accuracy"]
    assert again.size.file_bytes == record.size.file_bytes
    on = frugal.run([*words[:1], *words[2:], "trainer.max_epochs=0", f"model.init_from={file}", "measure=none"])
    assert on.quality["test/accuracy"] == record.quality["test/accuracy"]
    assert json.loads(str(ExportedNetwork(file.read_bytes()).description()))["task"] == "classification"
