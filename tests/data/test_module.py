"""What all DataModules answer alike."""

from __future__ import annotations

import pytest
import torch
from data_standins import Documents, Labelled, Letters, Numbered

from frugal.data.cleaning import Cleaning
from frugal.data.datamodule import ArrayDataModule
from frugal.data.module import DataModule
from frugal.data.preprocess import Preprocess
from frugal.data.text_datamodule import TextDataModule
from frugal.data.token_datamodule import TokenDataModule


def arrays(tmp_path) -> DataModule:
    return ArrayDataModule(Numbered(), Preprocess(), batch_size=8)


def tokens(tmp_path) -> DataModule:
    source = Documents(train=["some words of text " * 40], test=["more of it"])
    return TokenDataModule(source, Cleaning(), Letters(), str(tmp_path), batch_size=4, block_size=8)


def texts(tmp_path) -> DataModule:
    rows = [(f"text {i} {'x' * (i % 20)}", i % 2) for i in range(100)]
    return TextDataModule(Labelled(train=rows, test=rows[:10]), Cleaning(), Letters(), batch_size=8)


@pytest.fixture(params=[arrays, tokens, texts])
def data(request, tmp_path) -> DataModule:
    made = request.param(tmp_path)
    made.prepare_data()
    made.setup("fit")
    return made


def test_splits_have_the_names_of_what_there_is(data):
    assert set(data.splits) == {"train", "val", "test"}


def test_an_example_has_the_shape_and_type_of_a_network_input(data):
    x, _ = next(iter(data.train_dataloader()))
    (calibrating,) = data.calibration_batches(3)
    for example in (data.example(3, "meta"), data.example(3, "cpu")):
        assert example.dtype == calibrating.dtype and example.ndim == calibrating.ndim == x.ndim
        assert len(example) == len(calibrating) == 3
    assert data.example(3).device.type == "meta"
    if not isinstance(data, TextDataModule):
        assert data.example(3).shape == calibrating.shape


def test_the_state_is_plain_and_loads_again(data, tmp_path):
    path = tmp_path / "state.pt"
    torch.save(data.state_dict(), path)
    assert torch.load(path, weights_only=True) == data.state_dict()
    data.load_state_dict(data.state_dict())


def test_facts_and_figures_are_dictionaries(data):
    assert isinstance(data.facts(), dict) and isinstance(data.figures(), dict)
    assert set(data.figures().get("splits", data.figures().get("samples"))) == {"train", "val", "test"}


def test_the_identity_is_the_source_and_more(data):
    assert len(data.sha256()) == 64 and (data.sha256() == data.source.sha256()) == isinstance(data, ArrayDataModule)


def test_all_say_whether_their_classes_have_names(data):
    assert data.class_names is None  # of `Labelled` none are known


def test_class_names_are_those_of_the_trained_network():
    source = Labelled(2, train=[("a", 0), ("b", 1)], test=[("a", 1)])
    data = TextDataModule(source, Cleaning(), Letters(), batch_size=1, val_fraction=0)
    assert data.class_names is None
    state = {**data.state_dict(), "tokenizer": {"letters": ["a"], "separated": True}}
    data.load_state_dict({**state, "class_names": ["class 1", "class 0", "another"]})
    data.setup()
    assert data.class_names == ["class 1", "class 0", "another"]
    assert data.splits["test"].y.tolist() == [0] and source.class_names == ["class 0", "class 1"]
