"""`frugal doctor` reports what is so: each test changes the machine or the installation and looks for the change."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from frugal import doctor
from frugal.doctor import backends, hardware, installation, surroundings
from frugal.doctor.check import Check


def by_name(checks: Iterator[Check] | list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_a_working_installation_exits_with_0_and_speaks_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--quick", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    checks = {(check["section"], check["name"]): check for check in report["checks"]}
    assert report["ok"] is True
    assert checks["installation", "import torch"]["status"] == "ok"
    assert checks["machine", "threads"]["found"].startswith(str(torch.get_num_threads()))
    assert {"precision", "devices", "backends", "measuring", "folders", "data"} <= {section for section, _ in checks}
    assert ("backends", "torch.compile") not in checks


def test_the_table_is_never_cut(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    long = "x" * 300
    monkeypatch.setattr(doctor, "PROBES", (("machine", lambda: iter([Check("machine", "it", "warn", long, long)])),))
    assert doctor.main([]) == 0
    assert capsys.readouterr().out.count(long) == 2


def test_a_package_out_of_range_is_broken(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    true_version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.4" if name == "torch" else true_version(name))
    checks = [check for check in installation.installation() if check.status == "broken"]
    assert any("1.4" in check.found and "torch" in (check.fix or "") for check in checks)
    assert doctor.main(["--quick"]) == 1
    assert "broken: " in capsys.readouterr().out


def test_lightning_that_refuses_this_torch_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    true_requires = importlib.metadata.requires
    monkeypatch.setattr(
        importlib.metadata, "requires", lambda name: ["torch<2"] if name == "lightning" else true_requires(name)
    )
    (check,) = [check for check in installation.installation() if check.name == "lightning" and "wants" in check.found]
    assert check.status == "broken"
    assert torch.__version__ in check.found
    assert check.fix == 'pip install "torch<2"'


def test_torchvision_that_does_not_import_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (check,) = installation.torchvision()
    assert check.status == "broken"
    assert "torchvision::nms does not exist" in check.found
    assert check.fix is not None and "pip uninstall torchvision" in check.fix


def test_a_missing_extra_names_its_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(installation.EXTRAS, "wandb", (("no-such-distribution",), "logger=wandb"))
    check = by_name(installation.extras())["extra wandb"]
    assert check.status == "missing"
    assert "no-such-distribution" in check.found
    assert check.fix == 'pip install "frugal-ml[wandb]"'


def test_precisions_are_tried_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = by_name(hardware.precisions())
    assert checks["fp32"].status == checks["fp64"].status == "ok"
    assert {"bf16", "fp16", "fp8"} <= set(checks)

    true_matmul = torch.Tensor.__matmul__

    def wrong_in_bf16(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        product = true_matmul(x, y)
        return product * 1.5 if x.dtype == torch.bfloat16 else product

    monkeypatch.setattr(torch.Tensor, "__matmul__", wrong_in_bf16)
    broken = by_name(hardware.precisions())
    assert broken["bf16"].status == "missing"
    assert "wrong by" in broken["bf16"].found
    assert broken["fp32"].status == "ok"


def test_a_probe_that_raises_takes_no_other_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing() -> Iterator[Check]:
        yield Check("machine", "first", "ok", "found")
        raise ValueError("no such file\nsecond line")

    monkeypatch.setattr(doctor, "PROBES", (("machine", failing), ("devices", hardware.devices)))
    checks = by_name(doctor.examine())
    assert checks["first"].status == "ok"
    assert checks["failing"].found == "could not be tried: no such file"
    assert "CUDA" in checks or "cuda:0" in checks


def test_folders_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRUGAL_DATA_DIR", str(tmp_path / "data"))
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("FRUGAL_LOG_DIR", str(file / "logs"))
    checks = by_name(surroundings.folders())
    assert checks["data"].status == "ok" and "to be made" in checks["data"].found
    assert not (tmp_path / "data").exists()
    assert checks["logs"].status == "warn"
    assert checks["logs"].fix == "set FRUGAL_LOG_DIR to a folder of yours"


def test_mnist_files_absent_and_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from frugal.data.mnist import MNIST

    monkeypatch.setenv("FRUGAL_DATA_DIR", str(tmp_path))
    (check,) = surroundings.mnist()
    assert check.status == "missing"
    (tmp_path / "mnist").mkdir()
    for name in MNIST.checksums:
        (tmp_path / "mnist" / name).write_bytes(b"not what it says")
    (check,) = surroundings.mnist()
    assert check.status == "warn"
    assert check.fix is not None and "delete" in check.fix


def test_mnist_files_present(data_dir: Path) -> None:
    (check,) = surroundings.mnist()
    assert check.status == "ok"


@pytest.mark.wandb
def test_key_for_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    from frugal.loggers import wandb

    monkeypatch.delenv("WANDB_MODE")
    for there, status in ((True, "ok"), (False, "missing")):
        monkeypatch.setattr(wandb, "has_key", lambda there=there: there)
        (check,) = surroundings.wandb()
        assert check.status == status


@pytest.mark.slow
@pytest.mark.onnx
def test_what_takes_seconds_is_really_tried() -> None:
    checks = by_name([*backends.compiling(), *backends.onnx_export()])
    assert checks["ONNX export"].status == "ok"
    assert checks["torch.compile"].status in ("ok", "missing")
    if checks["torch.compile"].status == "missing":
        assert checks["torch.compile"].fix


def test_without_a_compiler_torch_compile_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(*_: object, **__: object) -> object:
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", no_compiler)
    (check,) = backends.compiling()
    assert check.status == "missing"
    assert check.fix is not None and "g++" in check.fix
