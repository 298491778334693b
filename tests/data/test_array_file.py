"""The user's own arrays: names, layouts, types and targets as people save them; nothing is unpickled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from frugal.data import room
from frugal.data.array_file import ArrayFile
from frugal.errors import DataError, SettingsError

BYTES = (np.arange(10 * 6 * 5) // 2).reshape(10, 6, 5).astype(np.uint8)
LABELS = np.arange(10) % 2
TABLE = np.arange(30.0).reshape(10, 3)


def saved(tmp_path: Path, **arrays: object) -> str:
    np.savez(tmp_path / "mine.npz", **arrays)
    return str(tmp_path / "mine.npz")


def joined(splits, part: str) -> np.ndarray:
    """The samples or targets of training and testing in the order of the file, by their first value."""
    x = np.concatenate([splits[name].x for name in ("train", "test")])
    y = np.concatenate([splits[name].y for name in ("train", "test")])
    order = np.argsort(x.reshape(len(x), -1)[:, 0], kind="stable")
    return (x if part == "x" else y)[order]


# ----------------------------------------------------------------------------------------------------- names and splits
@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_test", "y_test"),
        ("X_train", "Y_TRAIN", "X_test", "Y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
        ("train-data", "train-targets", "test-data", "test-targets"),
        ("x", "y", "x_test", "y_test"),
    ],
)
def test_splits_go_by_their_names(tmp_path, names):
    given = dict(zip(names, (BYTES, LABELS, BYTES[:3] + 1, LABELS[1:4]), strict=True))
    source = ArrayFile(saved(tmp_path, ids=np.arange(3), **given))
    splits = source.load()
    assert source.own_splits and set(splits) == {"train", "test"} and source.classes == 2 and source.class_names is None
    assert np.array_equal(splits["train"].x, BYTES[:, None]) and splits["train"].x.dtype == np.uint8
    assert splits["train"].y.tolist() == LABELS.tolist() and splits["train"].y.dtype == np.int64
    assert np.array_equal(splits["test"].x, BYTES[:3, None] + 1) and splits["test"].y.tolist() == [1, 0, 1]


def test_a_validation_split_may_be_there(tmp_path):
    for name in ("val", "valid", "validation"):
        path = saved(tmp_path, x=BYTES, y=LABELS, **{f"x_{name}": BYTES[:2], f"{name}_labels": LABELS[:2]})
        splits = ArrayFile(path).load()
        assert len(splits["val"]) == 2 and len(splits["train"]) == 8 and len(splits["test"]) == 2


@pytest.mark.parametrize("names", [("x", "y"), ("images", "labels"), ("DATA", "Target"), ("features", "targets")])
def test_one_split_is_cut_stratified(tmp_path, names):
    path = saved(tmp_path, **dict(zip(names, (BYTES, LABELS), strict=True)))
    source = ArrayFile(path, test_fraction=0.4)
    splits = source.load()
    assert not source.own_splits and np.bincount(splits["test"].y).tolist() == [2, 2]
    assert np.array_equal(joined(splits, "x"), BYTES[:, None]) and joined(splits, "y").tolist() == LABELS.tolist()
    assert not np.array_equal(ArrayFile(path, test_fraction=0.4, split_seed=3).load()["test"].x, splits["test"].x)


def test_equal_samples_stay_on_one_side(tmp_path):
    x = np.concatenate([TABLE, TABLE, TABLE])
    splits = ArrayFile(saved(tmp_path, x=x, y=np.tile(LABELS, 3)), test_fraction=0.3).load()
    sides = [set(map(tuple, splits[name].x.tolist())) for name in ("train", "test")]
    assert not sides[0] & sides[1] and len(splits["test"]) == 9


def test_two_npy_files(tmp_path):
    np.save(tmp_path / "x.npy", BYTES)
    np.save(tmp_path / "y.npy", LABELS[:, None])
    splits = ArrayFile(str(tmp_path / "x.npy"), targets=str(tmp_path / "y.npy")).load()
    assert np.array_equal(joined(splits, "x"), BYTES[:, None]) and joined(splits, "y").tolist() == LABELS.tolist()


# -------------------------------------------------------------------------------------------------------------- samples
@pytest.mark.parametrize(
    ("shape", "layout", "wanted"),
    [
        ((10, 6, 5), "auto", (1, 6, 5)),
        ((10, 3, 6, 5), "auto", (3, 6, 5)),
        ((10, 6, 5, 3), "auto", (3, 6, 5)),
        ((10, 1, 6, 5), "auto", (1, 6, 5)),
        ((10, 6, 5, 4), "auto", (4, 6, 5)),
        ((10, 6, 5, 7), "channels_last", (7, 6, 5)),
        ((10, 3, 6, 3), "channels_first", (3, 6, 3)),
        ((10, 3, 6, 3), "channels_last", (3, 3, 6)),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_layouts(tmp_path, shape, layout, wanted, dtype):
    x = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    splits = ArrayFile(saved(tmp_path, x_train=x, y_train=LABELS, x_test=x, y_test=LABELS), layout=layout).load()
    found = splits["train"].x
    assert found.shape[1:] == wanted and found.flags.c_contiguous
    assert found.dtype == (np.uint8 if dtype == np.uint8 else np.float32)
    place = (1, wanted[0] - 1, 2, 1)
    assert found[place] == (
        x[1, 2, 1] if x.ndim == 3 else x[place] if shape[1:] == wanted else x[1, 2, 1, wanted[0] - 1]
    )


@pytest.mark.parametrize("dtype", ["uint8", "bool", "int16", ">i4", "float16", "float64", "uint64"])
def test_tables_are_float32_whatever_they_were(tmp_path, dtype):
    table = (np.arange(30).reshape(10, 3) % 2).astype(dtype)
    splits = ArrayFile(saved(tmp_path, x_train=table, y_train=LABELS, x_test=table, y_test=LABELS)).load()
    assert splits["train"].x.dtype == np.float32 and np.array_equal(splits["train"].x, table.astype(np.float32))


def test_names_of_features(tmp_path):
    path = saved(tmp_path, x=TABLE, y=LABELS, feature_names=np.array(["a", "b", "c"]))
    source = ArrayFile(path)
    source.load()
    assert source.feature_names == ["a", "b", "c"]
    source = ArrayFile(path, feature_names=["d", "e", "f"])
    source.load()
    assert source.feature_names == ["d", "e", "f"]


# -------------------------------------------------------------------------------------------------------------- targets
@pytest.mark.parametrize(
    ("targets", "names", "labels"),
    [
        ([0, 1, 2, 0, 1], None, [0, 1, 2, 0, 1]),
        ([3, -7, 10, 3, -7], ["-7", "3", "10"], [1, 0, 2, 1, 0]),
        ([1, 2, 1, 2, 1], ["1", "2"], [0, 1, 0, 1, 0]),
        ([1.0, 0.0, 1.0, 0.0, 1.0], None, [1, 0, 1, 0, 1]),
        ([True, False, True, False, True], None, [1, 0, 1, 0, 1]),
        (["dog", "cat", "emu", "dog", "cat"], ["cat", "dog", "emu"], [1, 0, 2, 1, 0]),
        ([b"dog", b"cat", b"caf\xc3\xa9", b"dog", b"cat"], ["café", "cat", "dog"], [2, 1, 0, 2, 1]),
        ([[0, 1], [1, 0], [0, 1], [1, 0], [1, 0]], None, [1, 0, 1, 0, 0]),
        ([[5], [6], [5], [6], [5]], ["5", "6"], [0, 1, 0, 1, 0]),
    ],
    ids=str,
)
def test_classes_are_numbered_and_keep_their_names(tmp_path, targets, names, labels):
    y = np.array(targets)
    source = ArrayFile(saved(tmp_path, x_train=TABLE[:5], y_train=y, x_test=TABLE[:2], y_test=y[:2]))
    splits = source.load()
    assert splits["train"].y.tolist() == labels and splits["test"].y.tolist() == labels[:2]
    assert source.class_names == names and source.classes == len(set(labels)) and splits["train"].y.dtype == np.int64


def test_names_beside_the_classes(tmp_path):
    names = np.array(["no", "yes", "maybe"])
    source = ArrayFile(saved(tmp_path, x=TABLE, y=LABELS, x_test=TABLE[:1], y_test=[2], target_names=names))
    assert source.load()["test"].y.tolist() == [2] and source.class_names == ["no", "yes", "maybe"]
    assert source.classes == 3


def test_names_of_text_classes_give_their_order(tmp_path):
    y = np.array(["emu", "cat", "emu", "dog", "cat"])
    path = saved(tmp_path, x=TABLE[:5], y=y, x_test=TABLE[:1], y_test=["dog"], class_names=["emu", "fox", "cat", "dog"])
    source = ArrayFile(path)
    splits = source.load()
    assert source.class_names == ["emu", "fox", "cat", "dog"] and source.classes == 4
    assert splits["train"].y.tolist() == [0, 2, 0, 3, 2] and splits["test"].y.tolist() == [3]


@pytest.mark.parametrize(
    ("column", "kept"),
    [
        (1.7e9 + np.arange(400), False),  # one float32 in 128
        (2**60 + np.arange(400), False),
        (np.arange(20_000) + 1_700_000_000, False),
        (np.where(np.arange(400) % 2, 1.7e9 + np.arange(400), 0), False),
        (np.arange(400) * 1e-50, False),
        ((1.7e9 + np.arange(400)).astype("f4"), True),  # what was lost was lost before
        (np.random.default_rng(0).normal(size=20_000), True),
        (np.random.default_rng(0).normal(size=20_000) + 1000, True),
        (np.tile([0.1 + 0.2, 0.3, np.nan, 1e300], 100), True),
        (np.arange(2.0**24 - 400, 2.0**24), True),
    ],
    ids=str,
)
def test_a_column_that_float32_cannot_tell_apart_is_refused(tmp_path, column, kept):
    x = np.stack([np.zeros(len(column), column.dtype), column], axis=1)
    table = ArrayFile(saved(tmp_path, x=x, y=np.arange(len(x)) % 2, feature_names=np.array(["none", "time"])))
    if kept:
        assert len(table.load()["train"]) > 0
        return
    with pytest.raises(DataError, match=r"column time of train: float32 makes .* distinct values .*; subtract an off"):
        table.load()
    with pytest.raises(DataError, match="targets of train: float32 makes"):
        ArrayFile(saved(tmp_path, x=x[:, :1], y=column), task="regression").load()


def test_a_regression_takes_numbers(tmp_path):
    y = np.linspace(-1, 1, 10)
    source = ArrayFile(saved(tmp_path, x=TABLE, y=y[:, None]), task="regression", test_fraction=0.3)
    splits = source.load()
    assert source.task == "regression" and len(splits["test"]) == 3 and splits["train"].y.dtype == np.float32
    assert np.array_equal(joined(splits, "y"), y.astype(np.float32)) and source.class_names is None
    whole = ArrayFile(saved(tmp_path, x=np.arange(10), y=LABELS), task="regression").load()
    assert whole["train"].x.shape == (8, 1) and whole["train"].y.dtype == np.float32


def test_identity_is_what_the_files_hold(tmp_path):
    path = saved(tmp_path, x=TABLE, y=LABELS)
    of = [ArrayFile(path, **how).sha256() for how in (
        {}, {"task": "regression"}, {"layout": "channels_last"}, {"test_fraction": 0.5}, {"split_seed": 1},
        {"feature_names": ["a", "b", "c"]},
    )]  # fmt: skip
    assert len(set(of)) == 6 and of[0] == ArrayFile(path).sha256()
    saved(tmp_path, x=TABLE + 1, y=LABELS)
    assert ArrayFile(path).sha256() != of[0]


# ------------------------------------------------------------------------------------------------------ what is refused
OBJECTS = np.array([{"a": 1}, None] * 5, dtype=object)
NAN = np.where(np.arange(10) == 4, np.nan, 0)


@pytest.mark.parametrize(
    ("arrays", "how", "says"),
    [
        ({"a": TABLE, "b": LABELS}, {}, r"has a, b; call samples x \(or x_train\)"),
        ({}, {}, "has no array; call samples x"),
        ({"x": TABLE}, {}, "has no targets for the train split"),
        ({"y": LABELS}, {}, "has no samples for the train split"),
        ({"x": TABLE, "y": LABELS, "x_test": TABLE}, {}, "has no targets for the test split"),
        ({"x_test": TABLE, "y_test": LABELS}, {}, "has samples of test, and none to train on"),
        ({"x": TABLE, "images": BYTES, "y": LABELS}, {}, "x and images are the same by their names"),
        ({"x": TABLE, "X_train": TABLE, "y": LABELS}, {}, "x and X_train are the same by their names"),
        ({"x": OBJECTS, "y": LABELS}, {}, "it holds Python objects, which may run code"),
        ({"x": TABLE, "y": OBJECTS}, {}, "it holds Python objects, which may run code"),
        ({"x": TABLE, "y": LABELS[:9]}, {}, "10 samples and 9 targets in train"),
        ({"x": TABLE, "y": 3}, {}, "10 samples and 1 targets in train"),
        ({"x": TABLE[:0], "y": LABELS[:0]}, {}, "no sample in train"),
        ({"x": TABLE.astype(complex), "y": LABELS}, {}, r"samples of train are complex128 \[10, 3\]"),
        ({"x": np.zeros((10, 1, 1, 1, 1)), "y": LABELS}, {}, r"samples of train are float64 \[10, 1, 1, 1, 1\]"),
        ({"x": np.zeros((10, 0)), "y": LABELS}, {}, r"samples of train are float64 \[10, 0\]"),
        ({"x": np.zeros((10, 3, 8, 3)), "y": LABELS}, {}, r"the channels\? set data\.source\.layout="),
        ({"x": np.zeros((10, 7, 8, 9)), "y": LABELS}, {}, r"which dimension holds the channels\?"),
        ({"x": TABLE, "y": LABELS, "x_test": TABLE[:, :2], "y_test": LABELS}, {}, r"test are float32 \[10, 2\], of"),
        ({"x": BYTES, "y": LABELS, "x_test": BYTES / 2, "y_test": LABELS}, {}, r"test are float32 \[10, 1, 6, 5\]"),
        ({"x": TABLE, "y": NAN}, {}, r"targets of train: 4 \(from 0\) is NaN or infinite"),
        ({"x": TABLE, "y": LABELS / 2}, {}, "fractions like 0.5, .*data.task=regression"),
        ({"x": TABLE, "y": LABELS * 0}, {}, "only the class 0 to train on"),
        ({"x": TABLE, "y": np.ones((10, 2))}, {}, r"targets of train are float64 \[10, 2\], and not one-hot"),
        ({"x": TABLE, "y": LABELS, "x_test": TABLE, "y_test": LABELS + 1}, {}, "has the class 2, which train lacks"),
        ({"x": TABLE, "y": LABELS, "x_test": TABLE, "y_test": LABELS.astype(str)}, {}, "text in one split and num"),
        ({"x": TABLE, "y": LABELS * 2, "class_names": np.array(["a", "b"])}, {}, "class 2, which class_names lack"),
        ({"x": TABLE, "y": LABELS, "class_names": np.array(["a", "b", "a"])}, {}, "class_names have 'a' twice"),
        ({"x": TABLE, "y": LABELS.astype(str), "class_names": np.array(["0", "a"])}, {}, "class 1, which class_n"),
        ({"x": TABLE, "y": LABELS * 1e300}, {}, r"1e\+300 is more than a label can be"),
        ({"x": TABLE, "y": LABELS * -(2.0**64)}, {}, "is more than a label can be"),
        ({"x": TABLE, "y": LABELS.astype("u8") + 2**63}, {}, "9.22337e.18 is more than a label can be"),
        ({"x": np.zeros((20, 1)), "y": np.arange(20)}, {}, "each of 20 samples has a class of its own; .*regression"),
        ({"x": TABLE, "y": np.array(["a"] * 10)}, {"task": "regression"}, "a regression takes one number each"),
        ({"x": TABLE, "y": np.ones((10, 2))}, {"task": "regression"}, "a regression takes one number each"),
        ({"x": TABLE, "y": LABELS}, {"feature_names": ["a"]}, r"1 feature_names for samples \[3\]"),
        ({"x": BYTES, "y": LABELS}, {"feature_names": ["a"]}, r"1 feature_names for samples \[1, 6, 5\]"),
        ({"x": TABLE[:3], "y": LABELS[:3]}, {"test_fraction": 0.1}, "3 samples cannot be cut in two"),
    ],
)  # fmt: skip
def test_arrays_that_cannot_be_used_are_refused_in_one_line(tmp_path, arrays, how, says):
    path = saved(tmp_path, **arrays)
    with pytest.raises(DataError, match=says) as caught:
        ArrayFile(path, **how).load()
    assert "\n" not in str(caught.value) and path in str(caught.value)


def test_files_that_are_none(tmp_path):
    np.save(tmp_path / "x.npy", TABLE)
    archive = saved(tmp_path, x=TABLE, y=LABELS)
    (tmp_path / "text.npz").write_text("x")
    content = Path(archive).read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[:-30])
    # the first array's own bytes altered, which its checksum tells
    place = content.index(TABLE.tobytes())
    (tmp_path / "altered.npz").write_bytes(content[:place] + b"\xff" + content[place + 1 :])
    for given, says in (
        ({"path": "none.npz"}, "data.source.path=none.npz: there is no such file"),
        ({"path": archive, "targets": "none.npy"}, "data.source.targets=none.npy: there is no such file"),
        ({"path": str(tmp_path / "x.npy")}, "holds samples only; name the .npy of their targets, data.source.targets"),
        ({"path": archive, "targets": str(tmp_path / "x.npy")}, "belongs to an .npy"),
        ({"path": str(tmp_path / "text.npz")}, "neither an .npy nor an .npz file"),
        ({"path": str(tmp_path / "cut.npz")}, "cannot be read"),
        ({"path": str(tmp_path / "altered.npz")}, "cannot be read"),
    ):
        with pytest.raises(DataError) as caught:
            ArrayFile(**given).load()
        assert says in str(caught.value) and "\n" not in str(caught.value)


def test_more_than_fits_into_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = saved(tmp_path, x=TABLE, y=LABELS, other=np.zeros(10_000))
    monkeypatch.setattr(room, "memory", lambda: 2_000)  # x and y are 240 + 80 bytes and two headers of 128
    ArrayFile(path).load()
    monkeypatch.setattr(room, "memory", lambda: 1_000)
    with pytest.raises(DataError, match="GB in memory"):
        ArrayFile(path).load()


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"path": ""}, "data.source.path"),
        ({"task": "ranking"}, "data.task=ranking"),
        ({"layout": "first"}, "data.source.layout=first"),
        ({"test_fraction": 0.0}, "data.source.test_fraction=0.0"),
    ],
)
def test_bad_settings(how, says):
    with pytest.raises(SettingsError, match=says):
        ArrayFile(**{"path": "mine.npz", **how})
