"""Each technique alone and each pair of pruning, quantization and distillation, on images and on text: small runs from
the command's words to an artefact that is read back and counted.

The whole product is slow; one of each kind on images and text is quick.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import frugal
from frugal import artefact, settings
from frugal.coding.encoding import Encoding, encodings_of
from frugal.compose import compose
from frugal.deploy.onnx_network import OnnxNetwork
from frugal.errors import RefusedError
from frugal.pruning.masks import count_of, prunable, weight_of
from frugal.pruning.n_m import pattern
from frugal.record import Record

COMMON = (
    "measure=none", "logger=none", "trainer.threads=1", "trainer.max_epochs=1", "trainer.limit_train_batches=8",
    "trainer.limit_val_batches=1", "trainer.limit_test_batches=1",
)  # fmt: skip
STEPS, BATCH = 8, 4
DIGITS = ("data=digits", "data.source.size=8", f"data.batch_size={BATCH}")
REVIEWS = ("data=csv_text", "data.source.path=reviews.csv", f"data.batch_size={BATCH}", "data.max_length=40")
NETWORKS = {
    "mlp": [*DIGITS, "model=lenet_300_100"],
    "cnn": [*DIGITS, "model=small_cnn", "model.network.widths=[4,8,8]"],
    "gpt": [
        "data=pydocs", f"data.batch_size={BATCH}", "data.block_size=16", "data.eval_batch_size=4", "model=gpt_mini",
        "model.network.layers=1", "model.network.heads=2", "model.network.width=16",
    ],
    "classifier": [
        *REVIEWS, "model=text_encoder", "model.network.heads=2", "model.network.width=16", "tokenizer=bytes",
    ],
}  # fmt: skip
DENSITY = 0.3
PRUNING = {
    "random": [], "magnitude": [], "gradual": ["pruning.every=1"], "iterative": [], "snip": [], "n_m": [],
    "movement": ["pruning.every=1"], "structured": [], "lottery": ["pruning.rounds=1"],
}  # fmt: skip
QUANTIZATION = {
    "weight_int8": 127, "weight_int4": 7, "qat_int8": 127, "qat_int4": 7, "codebook": 32, "rate": 15,
    "static_int8": None, "dynamic_int8": None,
}  # fmt: skip
DISTILLATION = ("soft_targets", "hidden")
IN_TRAINING = ("qat_int8", "qat_int4", "codebook", "rate")


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One trained network for each of `NETWORKS`, filled on demand."""
    return {"": tmp_path_factory.mktemp("teachers")}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = (f'"a {"good" if i % 2 else "bad"} film number {i}, seen {"twice " * (i % 5)}",{i % 2}' for i in range(80))
    Path("reviews.csv").write_text("text,label\n" + "\n".join(rows) + "\n")


def train(network: str, *words: str) -> tuple[Record, Path]:
    record = frugal.run([*COMMON, *NETWORKS[network], *words])
    return record, Path("logs", record.run.experiment, record.run.name)


def teacher(network: str, teachers: dict[str, Path]) -> Path:
    if network not in teachers:
        train(network, f"paths.log_dir={teachers['']}", f"run.experiment={network}")
        teachers[network] = next((teachers[""] / network).glob("*/model.safetensors")).parent
    return teachers[network]


def check_pruning(name: str, record: Record, network: nn.Module, quantized: bool, dense: nn.Module) -> None:
    said = record.techniques["pruning"]
    if name == "structured":
        assert said["status"] == "converted" and said["parameters"][0] < said["parameters"][1]
        assert all(left == count_of(of, DENSITY) for left, of in said["units"].values() if left != of), said["units"]
        return
    assert said["status"] == "masked"
    if isinstance(network, OnnxNetwork):
        weights = [w for n, w in network.plain_weights().items() if w.ndim > 1 and "embedding" not in n]
        total = sum(weight_of(layer).numel() for layer in prunable(dense).values())
        left = sum(int(w.count_nonzero()) for w in weights)  # a layer without weights is no more in the file
        assert left <= (said["density"] + 0.02) * total  # what is not pruned has not been left out of the count
        return
    layers = {n: weight_of(layer) for n, layer in prunable(network).items() if n in said["layers"]}
    kept = {n: int(w.count_nonzero()) for n, w in layers.items()}
    if name == "n_m":
        assert all(bool((w[~pattern(w, 2, 4)] == 0).all()) for w in layers.values())
        wanted = {n: w.numel() // 2 for n, w in layers.items()}
    else:
        wanted = {n: count_of(w.numel(), DENSITY) for n, w in layers.items()}
    if name == "snip":
        kept, wanted = {"": sum(kept.values())}, {"": count_of(sum(w.numel() for w in layers.values()), DENSITY)}
    if quantized:  # a small weight may have become zero
        assert all(kept[n] <= wanted[n] for n in wanted) and sum(kept.values()), (kept, wanted)
    else:
        assert kept == wanted
        total = sum(w.numel() for w in layers.values())
        assert said["density"] == pytest.approx(sum(kept.values()) / total)


def check_quantization(name: str, record: Record, network: nn.Module) -> None:
    said = record.techniques["quantization"]
    if name in ("static_int8", "dynamic_int8"):
        assert said["status"] == "converted" and isinstance(network, OnnxNetwork) and said["quantized"]
        return
    found: dict[str, Encoding] = encodings_of(network)  # each agrees with its weight to the bit
    assert said["status"] == "simulated" and set(said["layers"]) == {n.rpartition(".")[0] for n in found}
    assert set(said["layers"]) == set(prunable(network))
    largest = QUANTIZATION[name]
    assert largest is not None
    for encoding in found.values():
        assert int(encoding.codes.abs().max()) <= largest
        assert name != "codebook" or (encoding.table is not None and int(encoding.codes.min()) >= 0)
    if name in IN_TRAINING:
        assert said["begin_step"] is not None and said["begin_step"] < STEPS


def words_for(network: str, pruning: str | None, quantization: str | None, distillation: str | None) -> list[str]:
    words: list[str] = []
    if pruning:
        density = [] if pruning == "n_m" else [f"pruning.density={DENSITY}"]
        words += [f"pruning={pruning}", *density, *PRUNING[pruning]]
        if pruning == "snip" and network == "gpt":
            words.append("model.network.zero_init=false")
    if quantization:
        words.append(f"quantization={quantization}")
        if pruning == "lottery" and quantization in IN_TRAINING:
            words.append("quantization.begin=80%")
        if pruning == "structured" and quantization == "qat_int4":
            words.append("quantization.group=null")
    if distillation:
        words.append(f"distillation={distillation}")
    return words


def go(
    network: str, pruning: str | None, quantization: str | None, distillation: str | None, teachers: Any, *more: str
) -> None:
    words = [*words_for(network, pruning, quantization, distillation), *more]
    if distillation:
        words.append(f"distillation.teacher={teacher(network, teachers)}")
    record, folder = train(network, *words)
    assert record.status == "completed" and record.run.steps_executed == STEPS
    read, description = artefact.load(artefact.find_weights(folder))
    assert list(record.techniques) == [
        stage for stage, name in (("distillation", distillation), ("pruning", pruning), ("quantization", quantization))
        if name
    ]  # fmt: skip
    if pruning:
        check_pruning(pruning, record, read, quantization is not None, artefact.dense(description))
    if quantization:
        check_quantization(quantization, record, read)
    if distillation:
        assert record.techniques["distillation"]["samples_taught"] == STEPS * BATCH
    assert torch.isfinite(torch.tensor(record.quality["test/loss"]))


ALONE = [
    *((name, None, None) for name in PRUNING),
    *((None, name, None) for name in QUANTIZATION),
    *((None, None, name) for name in DISTILLATION),
]
PAIRS = [
    *((p, q, None) for p, q in itertools.product(PRUNING, QUANTIZATION)),
    *((p, None, d) for p, d in itertools.product(PRUNING, DISTILLATION)),
    *((None, q, d) for q, d in itertools.product(QUANTIZATION, DISTILLATION)),
]
COVERING = [
    ("mlp", "gradual", "codebook", "soft_targets"),
    ("cnn", "structured", "qat_int8", None),
    ("gpt", "movement", "rate", None),
]


@pytest.mark.parametrize(("network", "pruning", "quantization", "distillation"), COVERING)
def test_some(
    network: str, pruning: str | None, quantization: str | None, distillation: str | None, teachers: Any
) -> None:
    go(network, pruning, quantization, distillation, teachers)


@pytest.mark.slow
@pytest.mark.onnx
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("pruning", "quantization", "distillation"), ALONE + PAIRS)
def test_each(
    network: str, pruning: str | None, quantization: str | None, distillation: str | None, teachers: Any
) -> None:
    go(network, pruning, quantization, distillation, teachers)


@pytest.mark.slow
@pytest.mark.parametrize("pruning", ["gradual", "n_m", "lottery", "movement", "structured"])
def test_masks_in_half_precision(pruning: str, teachers: Any) -> None:
    """Weights are bf16 themselves: no mask is lost in rounding, and what is pruned is a plain zero."""
    go("mlp", pruning, None, None, teachers, "precision=bf16_true")


@pytest.mark.slow
@pytest.mark.parametrize("pruning", ["gradual", "movement", "structured", "magnitude"])
@pytest.mark.parametrize("quantization", ["qat_int8", "rate"])
def test_with_an_average_and_adam(pruning: str, quantization: str, teachers: Any) -> None:
    """Neither moments, decay nor the average bring a pruned weight back into the artefact."""
    average = ("callbacks=ema", "callbacks.ema.every=3", "callbacks.ema.decay=0.5")
    go("cnn", pruning, quantization, None, teachers, "optim=adamw", "optim.weight_decay=0.1", *average)


@pytest.mark.slow
@pytest.mark.parametrize("pruning", [None, "gradual", "structured"])
@pytest.mark.parametrize("network", NETWORKS)
def test_with_rounded_activations(network: str, pruning: str | None, teachers: Any) -> None:
    go(network, pruning, "qat_int8", None, teachers, "quantization.activations=true")


# --------------------------------------------------------------------------------------------- what has no meaning
@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("pruning=snip model=gpt_mini data=pydocs", r"pruning=snip .* model\.network\.zero_init=true: what begins"),
        ("pruning=snip", r"pruning=snip .* trainer\.max_epochs=0: its scores are of the untrained network"),
        ("pruning=movement", r"pruning=movement .* trainer\.max_epochs=0: its scores are learnt in training; take"),
        ("pruning=lottery", r"pruning=lottery .* trainer\.max_epochs=0: it is a way of training; take"),
        ("pruning=lottery callbacks=ema", r"pruning=lottery cannot be combined with callbacks\.ema\._target_="),
        ("quantization=rate", r"quantization=rate .* trainer\.max_epochs=0: it is a way of training"),
        ("distillation=hidden", r"distillation=hidden .* trainer\.max_epochs=0: nobody is trained, so"),
        ("distillation=soft_targets", r"distillation=soft_targets .* nobody is trained, so nobody is taught"),
        ("distillation=soft_targets data=diabetes model=linear", r"distillation=soft_targets needs data\.task to be"),
        ("quantization=static_int8 precision=fp64", r"quantization=static_int8 .*precision\.mode=64-true"),
        ("quantization=qat_int8 precision=bf16_true", r"quantization=qat_int8 .* precision\.mode=bf16-true"),
        ("pruning=gradual run.weights=best", r"pruning=gradual cannot be combined with run\.weights=best"),
        ("quantization=codebook callbacks=ema", r"quantization=codebook cannot be combined with callbacks\.ema"),
    ],
)  # fmt: skip
def test_refused_before_anything_is_loaded(words: str, says: str) -> None:
    at_once = [] if "=" in words.split("=", 1)[1] else ["trainer.max_epochs=0", "model.init_from=somewhere"]
    with pytest.raises(RefusedError, match=f"^{says}"):
        settings.check_rules(*compose("train", [*words.split(), *at_once]))


def test_refused_when_the_steps_are_known(teachers: Any) -> None:
    with pytest.raises(RefusedError, match=r"^quantization\.begin=50%: is step 4, and pruning=lottery sets .* step 6"):
        train("mlp", "pruning=lottery", "quantization=qat_int8")
    with pytest.raises(
        RefusedError, match=r"^pruning=structured .* by groups of inputs.*: set quantization\.group=null"
    ):
        train("mlp", "pruning=structured", "quantization=qat_int4")
