"""Text classification: ids and padding, cutting, validation, buckets, evaluation by length, an exact resume."""

from __future__ import annotations

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from data_standins import Labelled, Letters
from test_datamodule import SaveAt, trainer
from torch import nn

from frugal.data.cleaning import Cleaning
from frugal.data.text_datamodule import TextDataModule, encode, pad
from frugal.errors import DataError, SettingsError
from frugal.tokenizer.bytes import Bytes
from frugal.tokenizer.characters import Characters

# text i is a letter of its own, i % 23 + 1 times
ROWS = [(chr(0x4E00 + i) * (i % 23 + 1), i % 3) for i in range(120)]


def make(given: Labelled | None = None, **kwargs) -> TextDataModule:
    given = given or Labelled(classes=3, train=ROWS, test=[("ab", 0), ("b", 1)])
    tokenizer = kwargs.pop("tokenizer", None) or Letters(separated=False)
    cleaning = kwargs.pop("cleaning", None) or Cleaning(duplicates=False)
    return TextDataModule(given, cleaning, tokenizer, **{"val_fraction": 0, "batch_size": 10, **kwargs})


def told(data: TextDataModule, batches) -> list[tuple[str, int]]:
    """The texts and labels of batches."""
    found = []
    for x, y in batches:
        assert x.dtype == y.dtype == torch.int64
        for row, label in zip(x.tolist(), y.tolist(), strict=True):
            ids = [i - 1 for i in row if i]
            assert row == [i + 1 for i in ids] + [0] * (len(row) - len(ids))  # padding on the right alone
            found.append((data.tokenizer.decode(ids), label))
    return found


def test_ids_are_the_tokenizers_plus_one_and_padding_is_zero():
    data = make(Labelled(train=[("abc", 0), ("b", 1)], test=[("cb", 1)]), batch_size=2, bucket=False)
    data.setup()
    ((x, y),) = data.train_dataloader()
    rows = dict(zip(y.tolist(), x.tolist(), strict=True))
    assert rows == {0: [1, 2, 3, 0, 0, 0, 0, 0], 1: [2, 0, 0, 0, 0, 0, 0, 0]}
    assert data.dims() == {"vocabulary": 4, "classes": 2, "max_length": 256, "space": None}


@pytest.mark.parametrize("bucket", [True, False])
def test_each_text_comes_once_an_epoch_with_its_label(bucket):
    data = make(bucket=bucket, batch_size=11)
    data.setup()
    loader = data.train_dataloader()
    first, second = list(loader), list(loader)
    assert sorted(told(data, first)) == sorted(told(data, second)) == sorted(ROWS)
    assert told(data, first) != told(data, second)
    for x, _ in first:
        longest = int((x > 0).sum(1).max())
        assert x.shape[1] % 8 == 0 and longest <= x.shape[1] < longest + 8


def test_buckets_save_padding():
    lengths = {}
    for bucket in (True, False):
        data = make(bucket=bucket)
        data.setup()
        lengths[bucket] = sum(x.numel() for x, _ in data.train_dataloader())
    assert lengths[True] < 0.8 * lengths[False]


def test_evaluation_batches_are_of_like_length_and_see_each_text_once():
    data = make(Labelled(train=ROWS, test=ROWS[:50]), eval_batch_size=8)
    data.setup()
    batches = list(data.test_dataloader())
    assert sorted(len(y) for _, y in batches) == [2] + [8] * 6
    assert sorted(told(data, batches)) == sorted(ROWS[:50])
    lengths = [[len(text) for text, _ in told(data, [batch])] for batch in batches]
    assert [n for batch in sorted(lengths) for n in batch] == sorted(len(text) for text, _ in ROWS[:50])
    for one, other in zip(batches, data.test_dataloader(), strict=True):
        assert torch.equal(one[0], other[0])  # the same order at each pass


def test_the_first_batches_of_an_evaluation_are_no_shorter_than_all():
    rows = [("a" * (i % 200 + 1), i % 2) for i in range(2000)]
    data = make(Labelled(train=rows[:200], test=rows), eval_batch_size=20)
    data.setup()
    lengths = [float((x > 0).sum(1).float().mean()) for x, _ in data.test_dataloader()]
    assert sum(lengths) / 100 == pytest.approx(100.5)
    assert 75 < sum(lengths[:25]) / 25 < 125  # by length: 25


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_training_and_evaluation(ranks, monkeypatch):
    data = make(Labelled(train=ROWS, test=ROWS[:50]), eval_batch_size=8, batch_size=12)
    data.setup()
    trained, tested = [], []
    for rank in range(ranks):
        monkeypatch.setattr(data, "_rank", lambda rank=rank: (rank, ranks))
        trained += told(data, data.train_dataloader())
        tested += told(data, data.test_dataloader())
    assert sorted(trained) == sorted(ROWS) and sorted(tested) == sorted(ROWS[:50])


def test_long_texts_are_cut_and_counted():
    data = make(max_length=10)
    data.setup()
    batches = list(data.train_dataloader())
    assert max(x.shape[1] for x, _ in batches) == 10  # not a multiple of 8: networks know no more positions
    assert sorted(told(data, batches)) == sorted((text[:10], label) for text, label in ROWS)
    counts = data.figures()["splits"]["train"]
    assert counts["truncated"] == sum(len(text) > 10 for text, _ in ROWS)
    assert counts["tokens"] == counts["characters"] == sum(len(text) for text, _ in ROWS)


def test_a_text_without_tokens_is_one_token_and_counted():
    data = make(Labelled(train=[("ab", 0), ("b", 1)], test=[("", 0), ("xyz", 1), ("b", 1)]), batch_size=1)
    data.setup()
    ((x, _),) = data.test_dataloader()
    assert x[:, 0].tolist() == [1, 1, 2] and (x[:, 1:] == 0).all()
    counts = data.figures()["splits"]["test"]
    assert counts["empty"] == 2 and counts["unknown"] == 3 and counts["texts"] == 3

    class WithUnknown(Letters):
        unknown = 1

    data = make(Labelled(train=[("ab", 0), ("b", 1)], test=[("", 0)]), batch_size=1, tokenizer=WithUnknown(False))
    data.setup()
    assert next(iter(data.test_dataloader()))[0].tolist() == [[2] + [0] * 7]


def test_cleaning_leaves_out_training_texts_alone():
    given = Labelled(train=[("ab", 0), ("ab", 0), ("b\x00", 1), (" ", 1)], test=[("ab", 0), ("ab", 0), (" ", 1)])
    data = make(given, cleaning=Cleaning(), batch_size=1)
    data.setup()
    assert sorted(told(data, data.train_dataloader())) == [("ab", 0), ("b", 1)]
    figures = data.figures()
    assert figures["splits"]["test"]["texts"] == 3
    assert figures["cleaning"]["duplicates"] == 1 and figures["cleaning"]["empty"] == 1
    assert figures["dropped"] == {"broken": 2}


def test_validation_is_stratified_and_the_tokenizer_does_not_know_it():
    data = make(val_fraction=0.25)
    data.setup()
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 90, "val": 30, "test": 2}
    assert np.bincount(data.splits["val"].y).tolist() == [10, 10, 10]
    assert data.tokenizer.vocabulary == 90  # each text has a letter of its own
    assert data.figures()["splits"]["val"]["empty"] == 30
    again = make(val_fraction=0.25, split_seed=1)
    again.setup()
    assert again.tokenizer.state_dict() != data.tokenizer.state_dict()
    given = make(Labelled(train=ROWS, val=ROWS[:7], test=ROWS[:5]), val_fraction=0.25)
    given.setup()
    assert len(given.splits["train"]) == 120 and len(given.splits["val"]) == 7


def test_what_was_cut_from_training_has_no_text_of_it():
    """Two labels of one text, or two of the same that cleaning makes alike: on both sides of a cut."""
    rows = [(chr(0x4E00 + i % 60), i % 2 if i < 60 else (i + 1) % 2) for i in range(120)]

    def texts(data: TextDataModule, name: str) -> set[tuple[int, ...]]:
        split = data.splits[name]
        return {tuple(split(np.array([i]))[0][0].tolist()) for i in range(len(split))}

    test = [(chr(0x4E00), 0), ("ab", 1), (chr(0x4E01) + "\0", 0)]
    given = Labelled(classes=2, train=[*rows, ("a", 0), ("b", 1)], test=test)
    known = Letters(False)
    known.fit([*(text for text, _ in rows), "ab"])
    data = make(given, cleaning=Cleaning(), val_fraction=0.3, tokenizer=known)
    data.setup()
    assert not texts(data, "val") & texts(data, "train")
    size = len(data.splits["val"])
    assert "duplicates_across_splits" not in data.figures()["cleaning"]
    assert 30 <= size <= 40 and size + len(data.splits["train"]) == 122 and len(data.splits["test"]) == 3
    given.own_splits = False
    data = make(given, cleaning=Cleaning(), val_fraction=0)
    data.setup()
    assert told(data, data.test_dataloader()) == [("ab", 1)]
    assert data.figures()["cleaning"]["duplicates_across_splits"] == 2
    data = make(given, val_fraction=0.3)  # duplicates stay
    data.setup()
    assert len(data.splits["test"]) == 3 and 30 <= len(data.splits["val"]) <= 40


def test_a_given_tokenizer_is_not_fitted():
    tokenizer = Letters(False)
    tokenizer.load_state_dict({"letters": ["a"]})
    data = make(Labelled(train=[("ab", 0), ("ba", 1)], test=[("a", 0)]), tokenizer=tokenizer, batch_size=1)
    assert data.dims()["vocabulary"] == 2 and tokenizer.fits == 0


def test_texts_from_elsewhere_are_encoded_alike():
    data = make(Labelled(train=[("abc", 0), ("b", 1)], test=[("cb", 1)]), batch_size=1, max_length=2)
    data.setup()
    rows = [encode(text, data.tokenizer, 2) for text in ("cab", "b", "")]
    assert pad(rows).tolist() == [[3, 1], [2, 0], [1, 0]] and pad(rows).dtype == torch.int64


class Named(Labelled):
    def __init__(self, names: list[str], **splits: list[tuple[str, int]]) -> None:
        super().__init__(len(names), **splits)
        self.class_names = names


def test_classes_keep_the_numbers_that_a_network_was_trained_with():
    trained = make(Named(["bad", "fair", "good"], train=[("ab", 0), ("b", 1), ("a", 2)], test=[("a", 0)]), batch_size=1)
    trained.setup()
    state = trained.state_dict()
    assert state["class_names"] == ["bad", "fair", "good"]
    fewer = make(Named(["bad", "good"], train=[("ab", 0), ("b", 1)], test=[("a", 1), ("b", 0)]), batch_size=1)
    fewer.load_state_dict(state)
    assert fewer.dims()["classes"] == 3 and fewer.facts()["class_names"] == state["class_names"]
    assert sorted(told(fewer, fewer.test_dataloader())) == [("a", 2), ("b", 0)]
    others = make(Named(["bad", "superb"], train=[("ab", 0), ("b", 1)], test=[("a", 1)]), batch_size=1)
    others.load_state_dict(state)
    with pytest.raises(DataError, match=r"not those that the network was trained on \(superb\)"):
        others.setup()


def test_what_modules_are_told():
    data = make()
    assert data.facts() == {"class_names": ["class 0", "class 1", "class 2"]}
    assert data.dims()["classes"] == 3
    assert make(Labelled(train=[("a", 0), ("b", 4)], test=[("a", 5)]), batch_size=1).dims()["classes"] == 6


def test_an_example_is_as_long_as_batches_are_on_average():
    data = make(bucket=False, batch_size=60)
    assert data.example(5).shape == (5, 24)
    short = make(Labelled(train=[("a" * 3, 0), ("b" * 3, 1)] * 10 + [("c" * 30, 0)] * 20, test=[("a", 0)]))
    assert short.example(1).shape == (1, 20)  # half the batches 8, half 32


def test_calibration_is_the_same_again():
    data = make()
    data.setup()
    batches = list(data.calibration_batches(25))
    assert [len(x) for x in batches] == [10, 10, 5]
    for one, other in zip(batches, data.calibration_batches(25), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("key", "value"), [("max_length", 0), ("batch_size", 0), ("workers", -1)])
def test_nonsense_is_refused_by_key(key, value):
    with pytest.raises(SettingsError, match=f"data.{key}={value}"):
        make(**{key: value})


def test_a_split_that_cleaning_empties_is_refused():
    with pytest.raises(DataError, match="no text is left in the train split of Labelled"):
        make(Labelled(train=[("a", 0), ("b", 1)], test=[("a", 0)]), cleaning=Cleaning(min_length=5)).setup()


class Model(pl.LightningModule):
    def __init__(self, vocabulary: int, classes: int) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.EmbeddingBag(vocabulary, 8, mode="sum"), nn.Dropout(0.3), nn.Linear(8, classes))
        self.inputs: list[torch.Tensor] = []

    def on_train_batch_start(self, batch, batch_idx):
        torch.manual_seed(1000 + self.trainer.fit_loop.epoch_loop.total_batch_idx)

    def training_step(self, batch, batch_idx):
        self.inputs.append(batch[0])
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resume_in_mid_epoch_is_bit_identical(tmp_path, workers):
    def fresh(workers: int) -> tuple[TextDataModule, Model]:
        data = make(batch_size=11, seed=5, workers=workers)
        torch.manual_seed(0)
        return data, Model(data.dims()["vocabulary"], 3)

    data, whole = fresh(0)
    trainer(max_epochs=2, callbacks=[SaveAt(tmp_path, (4, 11, 15))]).fit(whole, data)
    for stop in (4, 11, 15):
        again, resumed = fresh(workers)
        torch.manual_seed(stop)  # a process that starts anew has another state
        trainer(max_epochs=2).fit(resumed, again, ckpt_path=tmp_path / f"{stop}.ckpt", weights_only=True)
        assert len(resumed.inputs) == 22 - stop
        for one, other in zip(whole.inputs[stop:], resumed.inputs, strict=True):
            assert torch.equal(one, other)
        for name, value in whole.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize(
    ("tokenizer", "space"),
    [(Bytes(), 33), (Characters(), 1), (Characters(unknown=False), 1)],
    ids=lambda v: str(v)[:20],
)
def test_a_network_is_told_the_space_where_tokens_are_signs(tokenizer, space):
    data = TextDataModule(
        Labelled(train=[("b c", 0), ("a b", 1)], test=[("a c", 0)]), Cleaning(), tokenizer, val_fraction=0.0
    )
    assert data.dims()["space"] == space
