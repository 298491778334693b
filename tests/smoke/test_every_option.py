"""Every shipped option composes, runs and takes effect; a new file under configs/ is in these tests by being there."""

from __future__ import annotations

import hashlib
import io
import re
import shlex
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image
from safetensors.torch import load_file

import frugal
from command import inside
from frugal import artefact, settings
from frugal.compose import compose
from frugal.data.california_housing import CaliforniaHousing
from frugal.data.cifar10 import CIFAR10
from frugal.data.fashion_mnist import FashionMNIST
from frugal.data.idx import IdxImages
from frugal.data.mnist import MNIST
from frugal.data.shakespeare import Shakespeare
from frugal.data.sst2 import SST2
from frugal.data.wikitext2 import WikiText2
from frugal.measure.latency import LEVELS
from frugal.record import Record
from public_files import cifar_batches, housing, idx, tar_gz

SHIPPED = Path(__file__).parents[2] / "configs"
FILES = sorted(SHIPPED.rglob("*.yaml"))
OPTIONS = sorted((path.parent.name, path.stem) for path in SHIPPED.glob("*/*.yaml"))


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    (tmp_path / "home").mkdir()
    with inside(tmp_path / "home", tmp_path / "logs", monkeypatch):
        yield


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with small stand-ins for all that is fetched, checked by their own sums, and files of the user's."""
    folder = tmp_path / "data"
    monkeypatch.setenv("FRUGAL_DATA_DIR", str(folder))
    few_images(folder, MNIST, monkeypatch)
    few_images(folder, FashionMNIST, monkeypatch)
    few_archives(folder, monkeypatch)
    few_words(folder, monkeypatch)
    few_of_ones_own()
    return folder


def few_words(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play = "".join(f"ACT {i}.\nEnter {'a king' if i % 3 else 'a fool'}, and says {i * i} words.\n" for i in range(150))
    article = " \n = Valley {} = \n \n A valley of {} rivers , dry in summer . \n \n"
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for name, count in (("train", 60), ("valid", 9), ("test", 9)):
            text = "".join(article.format(i, i * i) for i in range(count))
            file.writestr(f"wikitext-2-raw/wiki.{name}.raw", text)
    reviews = [(f"a {'good' if i % 2 else 'bad'} film number {i} , seen twice", i % 2) for i in range(90)]
    lines = "".join(f"{text}\t{label}\n" for text, label in reviews)
    for source, files in (
        (Shakespeare, {"input.txt": play.encode()}),
        (WikiText2, {"wikitext-2-raw-v1.zip": archive.getvalue()}),
        (SST2, {f"{name}.tsv": lines.encode() for name in ("train", "dev", "test")}),
    ):
        (folder / source.folder).mkdir()
        for name, content in files.items():
            (folder / source.folder / name).write_bytes(content)
        sums = {name: hashlib.md5(content, usedforsecurity=False).hexdigest() for name, content in files.items()}
        monkeypatch.setattr(source, "checksums", sums)
    Path("book.txt").write_text(play)
    rows = "".join(f'"{text}",{label}\n' for text, label in reviews)
    Path("reviews.csv").write_text("text,label\n" + rows)


def few_of_ones_own() -> None:
    """Images in two folders and a file that is none, and arrays with text for labels."""
    draw = np.random.Generator(np.random.PCG64(0))
    for name in ("cats", "dogs"):
        Path("photos", name).mkdir(parents=True)
        for i in range(10):
            image = Image.fromarray(draw.integers(0, 256, (12, 16, 3), dtype=np.uint8))
            image.save(Path("photos", name, f"{i}.png"))
    Path("photos", "cats", "broken.png").write_bytes(b"\x89PNG")
    labels = np.array(["cat", "dog"])[np.arange(40) % 2]
    np.savez("mine.npz", x=draw.integers(0, 256, (40, 9, 8), dtype=np.uint8), y=labels)


def few_images(folder: Path, source: type[IdxImages], monkeypatch: pytest.MonkeyPatch) -> None:
    """MNIST's four files, or of its form, with 200 images, one of them twice, and 50."""
    (folder / source.folder).mkdir(parents=True)
    draw, sums = np.random.Generator(np.random.PCG64(0)), {}
    for prefix, count in (("train", 200), ("t10k", 50)):
        images, labels = draw.integers(0, 256, (count, 28, 28), dtype=np.uint8), np.arange(count, dtype=np.uint8) % 10
        images[count - 1] = images[count - 11]
        for name, array in ((f"{prefix}-images-idx3-ubyte.gz", images), (f"{prefix}-labels-idx1-ubyte.gz", labels)):
            content = idx(array)
            (folder / source.folder / name).write_bytes(content)
            sums[name] = hashlib.md5(content, usedforsecurity=False).hexdigest()
    monkeypatch.setattr(source, "checksums", sums)


def few_archives(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CIFAR-10 with 20 images a file, and 300 blocks of California housing, one of which lies nowhere."""
    blocks = {name: re.sub(rb"[^,]+(?=,)", b"nan", content, count=1) for name, content in housing(300).items()}
    monkeypatch.setattr(CIFAR10, "batch", 20)
    for source, members in ((CIFAR10, cifar_batches(20)), (CaliforniaHousing, blocks)):
        (folder / source.folder).mkdir()
        (name,) = source.checksums
        (folder / source.folder / name).write_bytes(tar_gz(members))
        checksum = hashlib.md5((folder / source.folder / name).read_bytes(), usedforsecurity=False).hexdigest()
        monkeypatch.setattr(source, "checksums", {name: checksum})


# ----------------------------------------------------------------------------------------------------------- its effect
def rates(folder: Path) -> list[float]:
    rows = (folder / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("lr")
    return [float(row.split(",")[column]) for row in rows[1:] if row.split(",")[column]]


def checkpoint(folder: Path) -> dict:  # type: ignore[type-arg]
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def optimizer(folder: Path) -> dict:  # type: ignore[type-arg]
    (state,) = checkpoint(folder)["optimizer_states"]
    return state


def dtypes(folder: Path) -> set[torch.dtype]:
    return {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()}


def parameters(count: int) -> Callable[[Record, Path], bool]:
    return lambda record, folder: record.size.parameters == count


def tokenizer(name: str) -> Callable[[Record, Path], bool]:
    """Its name in the record, and its vocabulary beside the run."""
    return lambda record, folder: (
        record.data["tokenizer"]["name"] == name and len((folder / "tokenizer.json").read_text()) > 10
    )


def splits_of(*names: str) -> Callable[[Record, Path], bool]:
    return lambda record, folder: (
        set(record.data["splits"]) == set(names) and all(s["tokens"] > 0 for s in record.data["splits"].values())
    )


def pruned(at: list[int], **figures: object) -> Callable[[Record, Path], bool]:
    """What the technique says of itself, when it pruned, and that the epoch's sparsity is that of the weights."""

    def check(record: Record, folder: Path) -> bool:
        (state,) = [
            state
            for name, state in torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"].items()
            if "Pruning" in name
        ]
        said = record.techniques["pruning"]
        return (
            state["pruned_at"] == at
            and all(
                said[name] == (pytest.approx(value, rel=1e-4) if name == "density" else value)
                for name, value in figures.items()
            )
            and "pruning/sparsity" in (folder / "metrics.csv").read_text().splitlines()[0]
        )

    return check


def falls(folder: Path) -> bool:
    seen = rates(folder)
    return seen[-1] < max(seen)


def quantized(rows: int | None = None, whole: int | None = None, **figures: object) -> Callable[[Record, Path], bool]:
    """How many different values a row of the first layer's weight has at most, or all of it; and the figures."""

    def check(record: Record, folder: Path) -> bool:
        said = record.techniques["quantization"]
        weight = artefact.read(folder)[0]["layers.1.weight"]
        few = len(weight.unique()) <= whole if whole else all(len(row.unique()) <= (rows or 0) for row in weight)
        return few and said["layers"] == ["layers.1", "layers.3", "layers.5"] and figures.items() <= said.items()

    return check


# What shows that an option did what its name says; steps are few, so that these are the optimizer's and the files' own
# words, not the quality reached.
def coded(number: int) -> Callable[[Record, Path], bool]:
    """The file begins as the coder's, and the parts it says add up."""

    def check(record: Record, folder: Path) -> bool:
        content = (folder / "model.frugal").read_bytes()
        parts = record.techniques["coding"]["bytes"]
        return content[:4] == b"FRG" + bytes([16 + number]) and sum(parts.values()) == len(content)

    return check


def shared_out(**expected: int) -> Callable[[Record, Path], bool]:
    """Parameters of the network that a strategy shares out along each side of the mesh, here of one rank."""
    return lambda record, folder: record.techniques["strategy"]["shared_out"] == expected


EFFECTS: dict[str, Callable[[Record, Path], bool]] = {
    "model=simple_net": parameters(235_146),
    "model=lenet_300_100": parameters(266_610),
    "model=lenet5": parameters(431_080),
    "model=small_cnn": parameters(29_178),
    "model=patch_cnn": lambda record, folder: bool(load_file(folder / "model.safetensors")["fitted"]),
    "model=resnet20": parameters(269_434),  # one channel of input instead of three
    "model=linear": parameters(11),
    "model=mlp": parameters(10 * 64 + 64 + 64 * 64 + 64 + 64 + 1),
    "trainer=full_batch": lambda record, folder: record.config["trainer"]["check_val_every_n_epoch"] == 50,
    "callbacks=ema": lambda record, folder: (
        "averaging_state" in torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    ),
    "optim=heavy_ball": lambda record, folder: optimizer(folder)["param_groups"][0]["lr"] == 0.2,
    "data=mnist": lambda record, folder: record.config["data"]["source"]["_target_"].endswith("MNIST"),
    "data=fashion_mnist": lambda record, folder: "Ankle boot" in (folder / "confusion.csv").read_text(),
    "data=cifar10": lambda record, folder: (
        record.data["samples"] == {"train": 90, "val": 10, "test": 20} and record.size.parameters == 269_722
    ),
    "data=diabetes": lambda record, folder: (
        record.data["cleaning"]["train"] == {"broken": 0, "duplicates": 0} and record.size.parameters == 11
    ),
    "data=california_housing": lambda record, folder: (
        sum(record.data["samples"].values()) == 299 and "test/rmse" in record.quality
    ),
    "data=image_folder": lambda record, folder: (
        record.data["samples"] == {"train": 14, "val": 2, "test": 4}
        and record.data["dropped"] == {"broken_images": 1}
        and (folder / "confusion.csv").read_text().startswith("true,cats,dogs")
    ),
    "data=array_file": lambda record, folder: (
        record.data["samples"] == {"train": 29, "val": 3, "test": 8}
        and (folder / "confusion.csv").read_text().startswith("true,cat,dog")
    ),
    "model=gpt": lambda record, folder: "test/bits_per_character" in record.quality,
    "model=gpt_mini": lambda record, folder: record.config["model"]["network"]["activation"] == "relu2",
    "model=gpt2": lambda record, folder: record.config["model"]["network"]["bias"] is True,
    "model=ngram": lambda record, folder: record.quality["test/loss"] < 2.5,  # one pass of counting is all it needs
    "model=bag_of_ngrams": lambda record, folder: "test/macro_f1" in record.quality,
    "model=text_cnn": lambda record, folder: (folder / "confusion.csv").read_text().startswith("true,negative,"),
    "model=text_encoder": lambda record, folder: (record.compute.flops_per_token or 0) > 0,
    "data=pydocs": splits_of("train", "val", "test"),
    "data=shakespeare": splits_of("train", "val", "test"),
    "data=wikitext2": splits_of("train", "val", "test"),
    "data=text_file": splits_of("train", "val", "test"),
    "data=sst2": splits_of("train", "val", "test"),
    "data=csv_text": splits_of("train", "val", "test"),
    "tokenizer=characters": tokenizer("Characters"),
    "tokenizer=bytes": lambda record, folder: record.data["tokenizer"]["vocabulary"] == 256,
    "tokenizer=bpe": tokenizer("BPE"),
    "tokenizer=words": tokenizer("Words"),
    "preprocess=text": lambda record, folder: "train" in record.data["cleaning"],
    "curriculum=length_warmup": lambda record, folder: record.config["curriculum"]["start"] == 8,
    "optim=muon": lambda record, folder: any("momentum_buffer" in s for s in optimizer(folder)["state"].values()),
    "optim=nanogpt": lambda record, folder: {g["weight_decay"] for g in optimizer(folder)["param_groups"]} == {0, 0.1},
    "optim=sgd": lambda record, folder: optimizer(folder)["param_groups"][0]["momentum"] == 0,
    "optim=momentum": lambda record, folder: optimizer(folder)["param_groups"][0]["momentum"] == 0.9,
    "optim=nesterov": lambda record, folder: optimizer(folder)["param_groups"][0]["nesterov"] is True,
    "optim=nesterov_bf16": lambda record, folder: (
        {s["master"].dtype for s in optimizer(folder)["state"].values()} == {torch.float32}
    ),
    "optim=adam": lambda record, folder: "exp_avg_sq" in optimizer(folder)["state"][0],
    "optim=adamw": lambda record, folder: optimizer(folder)["param_groups"][0]["weight_decay"] == 0.01,
    "schedule=none": lambda record, folder: len(set(rates(folder))) == 1,
    "schedule=cosine": lambda record, folder: falls(folder),
    "schedule=one_cycle": lambda record, folder: rates(folder)[0] < max(rates(folder)) and falls(folder),
    "schedule=step": lambda record, folder: rates(folder)[-1] == pytest.approx(rates(folder)[0] * 0.01),
    "schedule=wsd": lambda record, folder: falls(folder),
    "preprocess=none": lambda record, folder: record.config["preprocess"]["normalize"] is False,
    "preprocess=shifts": lambda record, folder: record.config["preprocess"]["shift"] == 2,
    "preprocess=crops": lambda record, folder: record.config["preprocess"]["flip"] is True,
    "preprocess=affine": lambda record, folder: record.config["preprocess"]["rotate"] == 10,
    "preprocess=images": lambda record, folder: record.data["cleaning"] == {"train": {"duplicates": 1}},
    "preprocess=features": lambda record, folder: (
        sum(counts["broken"] for counts in record.data["cleaning"].values()) == 1
    ),
    "callbacks=early_stopping": lambda record, folder: record.run.steps_executed < 300,
    "distillation=soft_targets": lambda record, folder: (
        record.techniques["distillation"]["teacher"]["parameters"] == 266_610
        and record.time.ledger_s["distillation"] > 0
    ),
    "distillation=hidden": lambda record, folder: (
        record.techniques["distillation"]["projection_parameters"] == 128 * 100
        and set(artefact.read(folder)[0]) == {f"layers.{i}.{name}" for i in (1, 3, 5) for name in ("weight", "bias")}
    ),
    "precision=bf16": lambda record, folder: record.fingerprint.precision == "bf16-mixed",
    "precision=bf16_true": lambda record, folder: dtypes(folder) == {torch.bfloat16},
    "precision=fp16": lambda record, folder: checkpoint(folder)["ScaledFloat16"]["scale"] == 2.0**16,
    "precision=fp16_true": lambda record, folder: dtypes(folder) == {torch.float16},
    "precision=fp64": lambda record, folder: dtypes(folder) == {torch.float64},
    "precision=tf32": lambda record, folder: record.fingerprint.precision == "32-true, tf32",
    "precision=fp8": lambda record, folder: record.fingerprint.precision == "fp8, emulated",
    "strategy=ddp": shared_out(),
    "strategy=fsdp": shared_out(data_parallel=6),
    "strategy=tensor_parallel": shared_out(tensor_parallel=3),  # weight and bias of columns, the weight of rows
    "strategy=fsdp_tp": shared_out(data_parallel=6, tensor_parallel=3),
    "compile=default": lambda record, folder: record.techniques["compile"]["graphs"] > 0,
    "compile=max_autotune": lambda record, folder: record.techniques["compile"]["mode"] == "max-autotune",
    "compile=cuda_graphs": lambda record, folder: record.techniques["compile"]["mode"] == "reduce-overhead",
    "budget=samples": lambda record, folder: record.budget["unit"] == "samples" and record.budget["spent"] <= 10000,
    "budget=flops": lambda record, folder: record.budget["unit"] == "flops" and record.budget["spent"] <= 1e10,
    "budget=seconds": lambda record, folder: record.budget["unit"] == "seconds" and record.budget["spent"] < 3,
    # How a sweep is run is no part of a run: tests/launch and tests/sweep have what these do.
    **{f"launch={name}": lambda record, folder: True for name in ("processes", "slurm", "slurm_local")},
    "sweep=seeds": lambda record, folder: True,
    "sweep=paired": lambda record, folder: record.config["sweep"]["variants"] == [],
    "sweep=random": lambda record, folder: record.config["sweep"]["objectives"] == ["loss"],
    "sweep=tpe": lambda record, folder: record.config["sweep"]["objectives"] == ["loss"],
    "sweep=pareto": lambda record, folder: record.config["sweep"]["objectives"] == ["accuracy", "size"],
    "quantization=weight_int8": quantized(rows=255, status="simulated"),
    "quantization=weight_int4": quantized(rows=15 * 25, group=32, status="simulated"),
    "quantization=qat_int8": quantized(rows=255, begin_step=4),
    "quantization=qat_int4": quantized(rows=15 * 25, begin_step=4),
    "quantization=codebook": quantized(whole=32, begin_step=6),
    "quantization=rate": quantized(whole=31, begin_step=1, bits_weight=1e-5),
    "coding=none": lambda record, folder: "coding" not in record.techniques and (folder / "model.safetensors").exists(),
    "quantization=static_int8": lambda record, folder: (
        (folder / "model.onnx").is_file() and record.techniques["quantization"]["quantized"] == {"Gemm": 3}
    ),
    "quantization=dynamic_int8": lambda record, folder: (
        (folder / "model.onnx").is_file() and record.techniques["quantization"]["quantized"] == {"MatMulInteger": 3}
    ),
    "quantization=fp8": lambda record, folder: record.techniques["quantization"]["emulated"] is True,
    "deploy=onnx": lambda record, folder: (
        (folder / "model.onnx").is_file() and record.techniques["deploy"]["largest_difference"] < 1e-4
    ),
    "deploy=torch_export": lambda record, folder: (
        (folder / "model.pt2").is_file() and record.techniques["deploy"]["largest_difference"] < 1e-4
    ),
    "deploy=safetensors": lambda record, folder: (folder / "model.safetensors").is_file(),
    "coding=zstd": coded(1),
    "coding=huffman": coded(2),
    "coding=entropy": coded(3),
    "pruning=none": lambda record, folder: "pruning" not in record.techniques,
    "pruning=random": pruned(at=[0], density=0.1),
    "pruning=magnitude": lambda record, folder: (
        record.size.nonzero_parameters == 22_186 and pruned(at=[2], status="masked")(record, folder)  # Han et al. 2015
    ),
    "pruning=gradual": pruned(at=list(range(1, 7)), density=0.1),
    "pruning=iterative": pruned(at=[3, 5, 6], density=0.1),
    "pruning=lottery": pruned(at=[2, 4, 6], control="reinitialized", rewound_to=0),
    "pruning=snip": pruned(at=[0], density=0.1),
    "pruning=n_m": pruned(at=[4], density=0.5, pattern="2:4"),
    "pruning=movement": pruned(at=[1, 6], density=0.1),
    "pruning=structured": lambda record, folder: (
        record.techniques["pruning"]["status"] == "converted"
        and record.size.parameters == record.techniques["pruning"]["parameters"][0] < 235_146 * 0.6
    ),
    "experiment=han2015": lambda record, folder: (
        record.size.nonzero_parameters == 22_186 and pruned(at=[4, 5, 7], prunings=3)(record, folder)
    ),
    "experiment=han2016": lambda record, folder: coded(2)(record, folder) and quantized(whole=65)(record, folder),
    "experiment=tiny_lenet_pruned": lambda record, folder: (
        coded(3)(record, folder) and quantized(whole=7, begin_step=4, bias_levels=15)(record, folder)
    ),
    "experiment=tiny_lenet": lambda record, folder: (
        coded(3)(record, folder)
        and record.size.parameters == 266_610
        and record.techniques["distillation"]["teacher"]["source"] == "model=patch_cnn"
        and {name: int(w.any(1).sum()) for name, w in artefact.read(folder)[0].items() if w.ndim > 1}
        == {"layers.1.weight": 3, "layers.3.weight": 2, "layers.5.weight": 10}
    ),
    "experiment=compression_tour": lambda record, folder: (
        record.techniques == {} and record.run.experiment == "compression_tour" and record.size.parameters == 266_610
    ),
    "experiment=tiny_lenet5": lambda record, folder: (
        coded(3)(record, folder)
        and record.size.parameters == 431_080
        and {name: int(w.flatten(1).any(1).sum()) for name, w in artefact.read(folder)[0].items() if w.ndim > 1}
        == {"conv1.weight": 2, "conv2.weight": 2, "fc1.weight": 2, "fc2.weight": 10}
    ),
    "debug=one_batch": lambda record, folder: record.run.steps_executed == 1,
    "debug=overfit": lambda record, folder: record.quality["train/accuracy"] > 0.9,
    "debug=limited": lambda record, folder: record.run.steps_executed == 2 * 2,
    "debug=profiler": lambda record, folder: (
        (folder / "trace.json").stat().st_size > 1000 and "aten::" in (folder / "operations.txt").read_text()
    ),
    "debug=anomaly": lambda record, folder: record.config["trainer"]["detect_anomaly"] is True,
    "logger=csv": lambda record, folder: (folder / "metrics.csv").is_file(),
    "logger=none": lambda record, folder: not (folder / "metrics.csv").exists(),
    "logger=wandb": lambda record, folder: (
        (folder / "metrics.csv").is_file() and bool(list(folder.rglob("run-*.wandb")))
    ),
    "logger=tensorboard": lambda record, folder: bool(list(folder.glob("events.out.tfevents.*"))),
    "logger=mlflow": lambda record, folder: (
        bool(list(folder.parents[1].glob("mlruns/*/*/metrics/test/loss"))) and (folder / "mlflow.json").is_file()
    ),
    "logger=many": lambda record, folder: all(
        list(folder.rglob(name)) for name in ("metrics.csv", "events.out.tfevents.*", "mlflow.json", "run-*.wandb")
    ),
}
GPT_SIZE = [f"model.network.{word}" for word in ("layers=1", "heads=2", "width=16")]
BLOCKS = ["data.batch_size=4", "data.block_size=16", "data.eval_batch_size=16"]
LANGUAGE = ["data=shakespeare", *BLOCKS, *GPT_SIZE]
# Settings beside an option that let its effect be seen.
BESIDE = {
    "model=gpt": LANGUAGE,
    "model=gpt_mini": LANGUAGE,
    "model=gpt2": LANGUAGE,
    "model=ngram": ["data=shakespeare", "data.batch_size=4", "trainer.limit_train_batches=1.0"],
    "model=linear": ["data=diabetes"],
    "model=mlp": ["data=diabetes"],
    "model=bag_of_ngrams": ["data=sst2"],
    "model=text_cnn": ["data=sst2"],
    "model=text_encoder": ["data=sst2"],
    "data=pydocs": [*BLOCKS, *GPT_SIZE],
    "data=shakespeare": [*BLOCKS, *GPT_SIZE],
    "data=wikitext2": [*BLOCKS, *GPT_SIZE],
    "data=text_file": ["data.source.path=book.txt", *BLOCKS, *GPT_SIZE],
    "data=csv_text": ["data.source.path=reviews.csv"],
    "data=image_folder": ["data.source.path=photos"],
    "data=array_file": ["data.source.path=mine.npz"],
    "strategy=fsdp_tp": ["strategy.tensor_ranks=1"],
    "tokenizer=characters": LANGUAGE,
    "tokenizer=bytes": LANGUAGE,
    "tokenizer=bpe": [*LANGUAGE, "tokenizer.vocabulary=300"],
    "tokenizer=words": ["data=sst2"],
    "preprocess=text": LANGUAGE,
    "preprocess=crops": ["data=cifar10", "data.batch_size=8", "model.network.blocks=1"],
    "preprocess=images": ["data=mnist"],
    "preprocess=features": ["data=california_housing"],
    "data=cifar10": ["data.batch_size=8"],
    "curriculum=length_warmup": LANGUAGE,
    "optim=nesterov_bf16": ["precision=bf16_true"],
    "optim=muon": LANGUAGE,
    "optim=nanogpt": LANGUAGE,
    "distillation=soft_targets": ["distillation.teacher_model=lenet_300_100", "distillation.teacher_epochs=1"],
    "distillation=hidden": ["distillation.teacher_model=lenet_300_100", "distillation.teacher_epochs=1"],
    "pruning=magnitude": ["data=mnist", "model=lenet_300_100", "pruning.densities=[0.08,0.09,0.26]"],
    "pruning=lottery": ["pruning.control=reinitialized"],
    "precision=fp8": ["quantization.emulate=true"],
    "budget=seconds": ["budget.seconds=0.3"],
    "callbacks=early_stopping": ["trainer.max_epochs=150", "optim.lr=1e-12"],
    "experiment=han2015": ["data.batch_size=8"],  # eight steps of the stand-in's images
    "experiment=han2016": ["data.batch_size=8"],
    "experiment=tiny_lenet_pruned": ["data.batch_size=8", "pruning.densities=[0.001,0.01,0.1]"],  # soon coded
    "quantization=fp8": ["quantization.emulate=true"],
    "experiment=tiny_lenet": ["distillation.teacher_epochs=1", "quantization.units={layers.1:3,layers.3:2}"],
    "experiment=tiny_lenet5": ["distillation.teacher_epochs=1", "quantization.units={conv1:2,conv2:2,fc1:2}"],
    "measure=standard": ["measure.batches=[1]"],
    "measure=thorough": ["measure.batches=[1]"],
}
# A debug option says itself how long it trains.
SHORT = ["measure=none", "trainer.max_epochs=1", "trainer.limit_train_batches=8", "trainer.log_every_n_steps=1"]
WITH_SUBMITIT = pytest.mark.skipif(find_spec("submitit") is None, reason="submitit is not installed")
MARKS = {
    "launch=slurm": [WITH_SUBMITIT],
    "launch=slurm_local": [WITH_SUBMITIT],
    "precision=fp8": [pytest.mark.torchao],
    "precision=tf32": [pytest.mark.gpu],
    "compile=cuda_graphs": [pytest.mark.gpu],
    "compile=max_autotune": [pytest.mark.slow],
    "logger=wandb": [pytest.mark.wandb],
    "logger=tensorboard": [pytest.mark.tensorboard],
    "logger=mlflow": [pytest.mark.mlflow],
    "logger=many": [pytest.mark.wandb, pytest.mark.tensorboard, pytest.mark.mlflow],
    "deploy=onnx": [pytest.mark.onnx],
    "quantization=fp8": [pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")],
    "measure=standard": [pytest.mark.slow, pytest.mark.onnx],
    "measure=thorough": [pytest.mark.slow, pytest.mark.onnx],
}
named = [pytest.param(g, o, marks=MARKS.get(f"{g}={o}", []), id=f"{g}={o}") for g, o in OPTIONS]


@pytest.mark.parametrize(("group", "option"), named)
def test_it_runs_and_takes_effect(group: str, option: str, data: Path, tmp_path: Path) -> None:
    word = f"{group}={option}"
    short = [s for s in SHORT if not (s.startswith("measure") and group == "measure")]
    words = ["trainer.threads=1", word, *(short if group != "debug" else ["measure=none"]), *BESIDE.get(word, [])]
    record = frugal.run(words)
    folder = tmp_path / "logs" / record.run.experiment / record.run.name
    assert Record.read(folder) == record and record.status == "completed"
    assert record.config["choices"][group] == option
    assert record.quality["test/loss"] > 0 and any(folder.glob("model.*"))
    assert all(0 <= value <= 1 for name, value in record.quality.items() if name.endswith("accuracy"))
    if word in EFFECTS:
        assert EFFECTS[word](record, folder)
    if group == "measure":
        measured(option, record)


def measured(option: str, record: Record) -> None:
    """Each level's backends at each batch size, or the reason why one is absent."""
    expected = {
        (backend, batch) for backend in LEVELS[option].backends for batch in record.config["measure"]["batches"]
    }
    found = {(row.backend, row.batch) for row in record.latency}
    missing = {backend for backend, _ in expected - found}
    assert found <= expected and all(any(name in key for key in record.absent) for name in missing)
    assert all(0 < row.p50_ms <= row.p90_ms <= row.p99_ms for row in record.latency)
    if option == "none":
        assert "latency" in record.absent
    else:
        assert "eager" in {row.backend for row in record.latency}


@pytest.mark.parametrize("group", sorted({group for group, _ in OPTIONS} - {"experiment", "trainer", "measure"}))
def test_every_option_of_a_group_has_an_effect_to_be_seen(group: str) -> None:
    """A new option needs an entry above, unless it is the group's default, whose absence the others show."""
    _, choices = compose("train", [])
    untested = {f"{g}={o}" for g, o in OPTIONS if g == group} - EFFECTS.keys() - {f"{group}={choices[group]}"}
    assert not untested


# ---------------------------------------------------------------------------------------------------- what a file says
def head(path: Path) -> list[str]:
    """The comments at the top of an option file."""
    lines = path.read_text().splitlines()
    top = lines[: next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))]
    return [line.lstrip("# ") for line in top if "@package" not in line]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_file_begins_with_what_it_is_and_a_command_that_composes(path: Path) -> None:
    said = head(path)
    assert len(said) >= 2, "a comment: what it is, then a command to run it"
    assert not said[0].startswith("frugal ") and len(said[0]) > 15
    (command,) = [line for line in said if line.startswith("frugal ")]
    _, verb, *words = (word for word in shlex.split(command) if word != "-m")  # the lists are in the file
    assert verb in ("train", "evaluate", "predict")
    if verb != "train":
        words = [f"source={words[0]}", *words[1:]]
    if path.parent != SHIPPED:
        group, _, option = next(
            word for word in words if word.split("=")[0] == path.parent.name or "." in word
        ).partition("=")
        assert (group, option) == (path.parent.name, path.stem) or group.startswith(path.parent.name)
    # of a sweep's command, what its jobs have in common
    parsed = OverridesParser.create().parse_overrides([word for word in words if word != "-m"])
    words = [str(override.input_line) for override in parsed if not override.is_sweep_override()]
    cfg, choices = compose(verb, words)
    settings.check_targets(cfg)
    settings.check_values(cfg)
    if verb == "train":
        settings.check_rules(cfg, choices)


@pytest.mark.parametrize("path", sorted((SHIPPED / "experiment").glob("*.yaml")), ids=lambda path: path.stem)
def test_an_experiment_says_what_to_expect_and_what_it_costs(path: Path) -> None:
    text = " ".join(head(path))
    assert re.search(r"\bExpected\b", text) and re.search(r"\d ?(%|nats)", text)
    assert re.search(r"\d+ (s|seconds|minutes|min)\b", text), "its cost, as seen"


def test_the_files_under_test_are_the_ones_that_are_shipped() -> None:
    assert settings.config_folder().resolve() == SHIPPED.resolve()
    assert len(OPTIONS) >= 30


# ----------------------------------------------------------------------------------------- settings that options share
@pytest.mark.parametrize(
    ("words", "steps"),
    [
        (["trainer.accumulate_grad_batches=4"], 2),
        (["trainer.gradient_clip_val=0.01"], 8),
        (["trainer.max_steps=3"], 3),
        (["trainer.val_check_interval=4"], 8),
        (["data.drop_last=true"], 8),
        (["data.workers=2"], 8),
        (["data.val_fraction=0.0"], 8),
        (["trainer.max_epochs=2", "trainer.check_val_every_n_epoch=2"], 16),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_settings_of_the_loop(words: list[str], steps: int) -> None:
    record = frugal.run([*SHORT, "trainer.threads=1", *words])
    assert record.status == "completed" and record.run.steps_executed == steps


def test_clipping_and_accumulating_change_what_is_learnt(tmp_path: Path) -> None:
    files = []
    for words in ([], ["trainer.gradient_clip_val=0.01"], ["trainer.accumulate_grad_batches=2"], ["data.workers=2"]):
        record = frugal.run([*SHORT, "trainer.threads=1", *words])
        files.append((tmp_path / "logs" / "default" / record.run.name / "model.safetensors").read_bytes())
    plain, clipped, accumulated, with_workers = files
    assert clipped != plain and accumulated != plain
    assert with_workers == plain  # who carries the data is no part of what is learnt
