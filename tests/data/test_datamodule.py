"""The data module in a plain Lightning project: splits, statistics, batches on the device, and an exact resume."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from data_standins import Numbered, numbers
from torch import nn

from frugal.data.datamodule import ArrayDataModule
from frugal.data.digits import Digits
from frugal.data.preprocess import Preprocess
from frugal.data.sampler import BatchOrder
from frugal.data.source import ArraySource, Split
from frugal.data.split import holdout
from frugal.errors import DataError, SettingsError


class Tiny(pl.LightningModule):
    """A small network with dropout that keeps the inputs it was given."""

    def __init__(self, classes: int = 3, pixels: int = 16) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Flatten(), nn.Linear(pixels, 8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, classes)
        )
        self.inputs: list[torch.Tensor] = []
        self.correct, self.tested = 0, 0

    def on_train_batch_start(self, batch, batch_idx):
        torch.manual_seed(1000 + self.trainer.fit_loop.epoch_loop.total_batch_idx)

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.inputs.append(x)
        return nn.functional.cross_entropy(self.network(x), y)

    def validation_step(self, batch, batch_idx):
        self.test_step(batch, batch_idx)

    def test_step(self, batch, batch_idx):
        x, y = batch
        self.correct += int((self.network(x).argmax(1) == y).sum())
        self.tested += len(y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class Watching(ArrayDataModule):
    """Notes the raw samples of each training batch on their way to the device."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.seen: list[list[int]] = []

    def on_after_batch_transfer(self, batch, dataloader_idx):
        if self.trainer.training:
            self.seen.append(numbers(batch[0]))
        return super().on_after_batch_transfer(batch, dataloader_idx)


def trainer(**kwargs) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(**{**quiet, "accelerator": "cpu", "enable_checkpointing": False, **kwargs})


def module(**kwargs) -> Tiny:
    torch.manual_seed(0)
    return Tiny(**kwargs)


# ----------------------------------------------------------------------------------------- splits and statistics
def test_validation_is_cut_from_training_and_the_test_set_is_untouched():
    data = ArrayDataModule(Digits(), Preprocess())
    data.setup()
    source = Digits().load()
    held = holdout(source["train"].y, 0.1, 0)
    assert len(data.splits["val"][0]) == 144 and len(data.splits["train"][0]) == 1298
    for name, x, y in (
        ("train", source["train"].x[~held], source["train"].y[~held]),
        ("val", source["train"].x[held], source["train"].y[held]),
        ("test", source["test"].x, source["test"].y),
    ):
        np.testing.assert_array_equal(data.splits[name][0], x)
        np.testing.assert_array_equal(data.splits[name][1], y)


def test_statistics_are_those_of_the_training_split_alone():
    data = ArrayDataModule(Numbered(100), Preprocess(), val_fraction=0.3)
    data.setup()
    train = data.splits["train"][0].numpy().astype(np.float64)
    assert len(train) == 70
    assert data.preprocess.mean == pytest.approx([train.mean()], rel=1e-12)
    assert data.preprocess.std == pytest.approx([train.std()], rel=1e-12)


def test_a_validation_split_of_the_data_set_is_taken_as_it_is():
    data = ArrayDataModule(Numbered(100, val=13), Preprocess())
    data.setup()
    assert {name: len(x) for name, (x, _) in data.splits.items()} == {"train": 100, "test": 25, "val": 13}


def test_dims_are_what_a_network_takes():
    assert ArrayDataModule(Digits(), Preprocess()).dims() == {"input_shape": (1, 28, 28), "classes": 10}
    assert ArrayDataModule(Digits(8), Preprocess()).dims()["input_shape"] == (1, 8, 8)


def test_loaded_statistics_are_kept():
    data = ArrayDataModule(Numbered(), Preprocess())
    data.load_state_dict({"preprocess": {"mean": [3.0], "std": [2.0]}})
    data.setup()
    assert data.state_dict() == {"preprocess": {"mean": [3.0], "std": [2.0]}, "dtype": "uint8"}


def test_calibration_is_preprocessed_repeatable_and_without_augmentation():
    data = ArrayDataModule(Numbered(), Preprocess(normalize=False, shift=2), batch_size=16)
    data.setup()
    batches = list(data.calibration_batches(40))
    assert [len(b) for b in batches] == [16, 16, 8]
    for first, second in zip(batches, data.calibration_batches(40), strict=True):
        assert torch.equal(first, second)
    rows = {tuple(x.flatten().tolist()) for x in data.splits["train"][0] / 255}
    torch.testing.assert_close(torch.cat(batches).amax(), torch.tensor(1.0), atol=0.02, rtol=0)
    found = [tuple((x * 255).round().div(255).flatten().tolist()) for x in torch.cat(batches)]
    assert len(set(found)) == 40 and set(found) <= rows


@pytest.mark.parametrize("key", ["batch_size", "eval_batch_size", "workers"])
def test_nonsense_is_refused_by_key(key):
    with pytest.raises(SettingsError, match=f"data.{key}=-1"):
        ArrayDataModule(Numbered(), Preprocess(), **{key: -1})


# -------------------------------------------------------------------------------------------- in a plain Trainer
def test_it_trains_and_tests_in_a_plain_lightning_project():
    data, net = ArrayDataModule(Digits(), Preprocess()), module(classes=10, pixels=784)
    run = trainer(max_epochs=6)
    run.fit(net, data)
    assert net.inputs[0].dtype == torch.float32 and net.inputs[0].shape == (64, 1, 28, 28)
    assert run.global_step == 6 * 21
    net.correct = net.tested = 0
    run.test(net, data, verbose=False)
    assert net.tested == 355
    assert net.correct / net.tested > 0.6  # eight units; chance is 0.1


def test_without_validation_it_trains_too():
    data = ArrayDataModule(Numbered(), Preprocess(), val_fraction=0)
    run = trainer(max_epochs=1)
    run.fit(module(), data)
    assert run.global_step == 2 and "val" not in data.splits


@pytest.mark.parametrize("workers", [0, 2])
def test_every_epoch_sees_each_sample_once_in_an_order_of_its_own(workers):
    data = Watching(Numbered(), Preprocess(), batch_size=16, workers=workers, val_fraction=0.2, seed=4)
    trainer(max_epochs=3).fit(module(), data)
    train = sorted(numbers(data.splits["train"][0]))
    epochs = [list(itertools.chain(*data.seen[5 * e : 5 * e + 5])) for e in range(3)]
    assert len(data.seen) == 15 and all(sorted(epoch) == train for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert not multiprocessing.active_children()  # workers ended with the fit


def test_overfitting_repeats_the_same_batches():
    data = Watching(Numbered(), Preprocess(), batch_size=16)
    trainer(max_epochs=3, overfit_batches=2).fit(module(), data)
    assert data.seen[0:2] == data.seen[2:4] == data.seen[4:6] and len(data.seen) == 6
    assert data.seen[0] != data.seen[1]


@pytest.mark.parametrize(("limit", "batches"), [(4, 4), (0.5, 3), (1.0, 6)])
def test_limited_epochs_are_reshuffled(limit, batches):
    data = Watching(Numbered(), Preprocess(), batch_size=16)
    trainer(max_epochs=2, limit_train_batches=limit).fit(module(), data)
    assert len(data.seen) == 2 * batches
    assert data.seen[0] != data.seen[batches]


def test_a_failed_fit_leaves_no_workers():
    class Failing(Tiny):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("planted")

    data = ArrayDataModule(Numbered(), Preprocess(), workers=2)
    with pytest.raises(RuntimeError, match="planted"):
        trainer(max_epochs=1).fit(Failing(), data)
    assert not multiprocessing.active_children()


def test_true_low_precision_gets_inputs_of_its_type():
    data, net = ArrayDataModule(Numbered(), Preprocess()), module()
    trainer(max_epochs=1, precision="bf16-true").fit(net, data)
    assert net.inputs[0].dtype == torch.bfloat16


def test_evaluation_is_not_augmented():
    data = ArrayDataModule(Numbered(), Preprocess(shift=2), eval_batch_size=7)
    seen = []

    class Keeping(Tiny):
        def test_step(self, batch, batch_idx):
            seen.append(batch[0])

    trainer().test(Keeping(), data, verbose=False)
    assert [len(x) for x in seen] == [7, 7, 7, 4]
    assert torch.equal(torch.cat(seen), data.preprocess(data.splits["test"][0], training=False))


# -------------------------------------------------------------------------------------------------- exact resume
class SaveAt(pl.Callback):
    """Checkpoints after the given batches, counted over all epochs."""

    def __init__(self, folder, batches) -> None:
        self.folder, self.batches = folder, batches

    def on_train_batch_end(self, trainer, *_):
        done = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        if done in self.batches:
            trainer.save_checkpoint(self.folder / f"{done}.ckpt")


def data_for_resume(workers: int, **kwargs) -> Watching:
    return Watching(Numbered(), Preprocess(shift=1), batch_size=16, workers=workers, seed=7, **kwargs)


@pytest.mark.parametrize(
    ("limit", "accumulate", "stops"), [(1.0, 1, (1, 5, 6, 9)), (4, 2, (2, 4, 6)), (0.5, 1, (2, 4))]
)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resume_in_mid_epoch_is_bit_identical(tmp_path, limit, accumulate, stops, workers):
    settings = {"max_epochs": 3, "limit_train_batches": limit, "accumulate_grad_batches": accumulate}
    whole, data = module(), data_for_resume(0)
    trainer(callbacks=[SaveAt(tmp_path, stops)], **settings).fit(whole, data)
    for stop in stops:
        resumed, again = module(), data_for_resume(workers)
        torch.manual_seed(stop)  # a process that starts anew has another state
        run = trainer(**settings)
        run.fit(resumed, again, ckpt_path=tmp_path / f"{stop}.ckpt", weights_only=True)
        assert again.seen == data.seen[stop:]
        for one, other in zip(whole.inputs[stop:], resumed.inputs, strict=True):
            assert torch.equal(one, other)  # the shifts too
        for name, value in whole.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_resume_takes_the_statistics_from_the_checkpoint(tmp_path):
    data = ArrayDataModule(Numbered(), Preprocess(shift=1), batch_size=16)
    trainer(max_epochs=1, callbacks=[SaveAt(tmp_path, (2,))]).fit(module(), data)
    again = ArrayDataModule(Numbered(60), Preprocess(shift=1), batch_size=16)
    trainer(max_epochs=1).fit(module(), again, ckpt_path=tmp_path / "2.ckpt", weights_only=True)
    assert again.state_dict() == data.state_dict()


def test_a_second_fit_goes_on_with_the_next_epoch():
    data, net = data_for_resume(0), module()
    trainer(max_epochs=3).fit(net, data)
    parts, net = data_for_resume(0), module()
    run = trainer(max_epochs=1)
    run.fit(net, parts)
    run.fit_loop.max_epochs = 3
    run.fit(net, parts)
    assert parts.seen == data.seen


def test_shifts_differ_from_batch_to_batch_and_by_seed():
    runs = []
    for seed in (7, 7, 8):
        data, net = data_for_resume(0), module()
        data.seed = seed
        trainer(max_epochs=2, overfit_batches=1).fit(net, data)
        runs.append(net.inputs)
    assert torch.equal(runs[0][0], runs[1][0]) and torch.equal(runs[0][1], runs[1][1])
    assert not torch.equal(runs[0][0], runs[0][1])  # the same samples, moved otherwise
    assert not torch.equal(runs[0][0], runs[2][0])


# --------------------------------------------------------------------------------------------------------------- ranks
TWO_RANKS = """
import json, sys
sys.path[:0] = {paths!r}
import torch
from data_standins import Numbered
from frugal.data.preprocess import Preprocess
from test_datamodule import Tiny, Watching, trainer

class Testing(Tiny):
    def test_step(self, batch, batch_idx):
        self.tested += len(batch[1])
        self.network(batch[0])

if __name__ == "__main__":
    data = Watching(Numbered(103, test=31), Preprocess(shift=1), batch_size=16, eval_batch_size=5, val_fraction=0)
    net, run = Testing(), trainer(max_epochs=2, strategy="ddp", devices=2)
    run.fit(net, data)
    run.test(net, data, verbose=False)
    weights = [float(p.double().sum()) for p in net.parameters()]
    with open(f"{folder}/{{run.global_rank}}.json", "w") as file:
        json.dump({{"seen": data.seen, "tested": net.tested, "weights": weights}}, file)
"""


@pytest.mark.slow
def test_two_ranks_share_each_batch_and_the_test_set(tmp_path):
    here = Path(__file__).parent
    script = tmp_path / "two_ranks.py"
    script.write_text(TWO_RANKS.format(paths=[str(here), str(here.parents[1] / "src")], folder=tmp_path))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    alone = BatchOrder(103, 16, seed=0)
    for epoch in range(2):
        for i, rows in enumerate(alone.batches(epoch)):
            shares = [rank["seen"][epoch * len(alone) + i] for rank in ranks]
            assert len(shares[0]) == len(shares[1])
            assert shares[0] + shares[1] == rows[: len(rows) // 2 * 2].tolist()
    assert sorted(rank["tested"] for rank in ranks) == [15, 16]
    assert ranks[0]["weights"] == ranks[1]["weights"]


class Animals(ArraySource):
    """Two tiny images a class, the class in their pixels; classes in whatever order is asked for."""

    task = "classification"

    def __init__(self, names: list[str]) -> None:
        self.class_names = names
        self.dropped = {"unreadable": 3}

    def sha256(self) -> str:
        return "animals"

    def prepare(self) -> None:
        pass

    def load(self) -> dict[str, Split]:
        kinds = [{"cat": 1, "dog": 2, "owl": 3}[name] for name in self.class_names or []] * 2
        x = np.array(kinds, dtype=np.uint8).reshape(-1, 1, 1, 1)
        y = np.arange(len(kinds)) % (len(kinds) // 2)
        return {"train": Split(x, y), "test": Split(x, y)}


def animals(names: list[str], known: list[str] | None = None) -> ArrayDataModule:
    data = ArrayDataModule(Animals(names), Preprocess(), val_fraction=0.0)
    if known is not None:
        data.load_state_dict({"preprocess": {"mean": [0.0], "std": [1.0]}, "class_names": known})
    data.setup()
    return data


def test_classes_are_numbered_as_a_trained_network_knows_them() -> None:
    data = animals(["dog", "owl"], known=["owl", "cat", "dog"])
    x, y = data.splits["train"]
    assert [(int(a), int(b)) for a, b in zip(x.flatten(), y, strict=True)] == [(2, 2), (3, 0), (2, 2), (3, 0)]
    assert data.dims()["classes"] == 3 and data.state_dict()["class_names"] == ["owl", "cat", "dog"]


def test_a_class_that_the_network_does_not_know_is_refused() -> None:
    with pytest.raises(DataError, match="not those that the network was trained on \\(dog\\)"):
        animals(["cat", "dog"], known=["cat", "owl"])


def test_what_was_dropped_and_cleaned_away_is_in_the_figures() -> None:
    data = animals(["cat", "dog"])
    assert data.figures() == {"samples": {"train": 4, "test": 4}, "dropped": {"unreadable": 3}}
    assert data.state_dict()["class_names"] == ["cat", "dog"]


class Copies(Animals):
    """Thirty images, each four times."""

    def __init__(self) -> None:
        super().__init__(["a", "b"])

    def load(self) -> dict[str, Split]:
        x = np.repeat(np.arange(30, dtype=np.uint8), 4).reshape(-1, 1, 1, 1)
        return {"train": Split(x, np.arange(120) % 2), "test": Split(x[:1], np.zeros(1, np.int64))}


def test_copies_of_a_sample_are_not_validated_on_and_trained_with() -> None:
    data = ArrayDataModule(Copies(), Preprocess(), val_fraction=0.2)
    data.setup()
    train, val = (set(data.splits[name][0].flatten().tolist()) for name in ("train", "val"))
    assert val and not train & val
