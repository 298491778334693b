"""The user's own images: both layouts, what is passed over and dropped, the cut of the test split, the cache."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from frugal.data import image_folder, room
from frugal.data.image_folder import ImageFolder
from frugal.errors import DataError, SettingsError


def draw(path: Path, value: int, size: tuple[int, int] = (4, 4), colour: bool = False) -> Path:
    """An image of one value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3) if colour else size, value, np.uint8)).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten cats of values 0 to 9 and five dogs of 100 to 104, without splits."""
    for i in range(10):
        draw(tmp_path / "photos" / "cats" / f"{i}.png", i)
    for i in range(5):
        draw(tmp_path / "photos" / "dogs" / f"{i}.png", 100 + i)
    return tmp_path / "photos"


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    """A training split of two classes, and others of one image each."""
    for split, name, value in (("train", "a", 1), ("train", "b", 2), ("valid", "a", 3), ("test", "b", 4)):
        draw(tmp_path / "own" / split / name / "0.png", value)
    return tmp_path / "own"


def values(split) -> list[int]:
    return split.x[:, 0, 0, 0].tolist()


# --------------------------------------------------------------------------------------------------------------- layout
def test_a_folder_a_class(photos):
    source = ImageFolder(str(photos))
    source.prepare()
    found = source.load()
    assert source.class_names == ["cats", "dogs"] and source.classes == 2 and source.dropped == {}
    assert not source.own_splits and set(found) == {"train", "test"}
    train, test = found["train"], found["test"]
    assert train.x.shape == (12, 1, 4, 4) and train.x.dtype == np.uint8 and train.y.dtype == np.int64
    assert np.bincount(train.y).tolist() == [8, 4] and np.bincount(test.y).tolist() == [2, 1]
    assert sorted(values(train) + values(test)) == [*range(10), *range(100, 105)]
    for split in (train, test):
        assert [value >= 100 for value in values(split)] == split.y.astype(bool).tolist()
    other = ImageFolder(str(photos), split_seed=1).load()["test"]
    assert values(ImageFolder(str(photos)).load()["test"]) == values(test) != values(other)


def test_copies_of_an_image_stay_on_one_side(tmp_path):
    for i in range(40):
        draw(tmp_path / "ab"[i % 2] / f"{i}.png", i % 20)
        draw(tmp_path / "ab"[i % 2] / f"{i}.bmp", i % 20)  # another file, the same pixels
    found = ImageFolder(str(tmp_path)).load()
    assert not set(values(found["train"])) & set(values(found["test"])) and len(found["test"]) == 16


def test_splits_of_its_own(splits):
    source = ImageFolder(str(splits))
    found = source.load()
    assert {name: (values(split), split.y.tolist()) for name, split in found.items()} == {
        "train": ([1, 2], [0, 1]),
        "val": ([3], [0]),
        "test": ([4], [1]),
    }
    assert source.own_splits


def test_folders_within_a_class_and_links_belong_to_it(photos, tmp_path):
    draw(photos / "cats" / "more" / "x.png", 77)
    draw(tmp_path / "elsewhere" / "y.png", 78)
    (photos / "foxes").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    source = ImageFolder(str(photos))
    found = source.load()
    both = dict(zip(values(found["train"]) + values(found["test"]), [*found["train"].y, *found["test"].y], strict=True))
    assert both[77] == 0 and both[78] == 2 and source.class_names == ["cats", "dogs", "foxes"]


def test_a_class_may_be_called_like_a_split(tmp_path):
    for name in ("train", "plane"):
        for i in range(5):
            draw(tmp_path / name / f"{i}.png", i)
    source = ImageFolder(str(tmp_path))
    source.load()
    assert source.class_names == ["plane", "train"]


def test_what_is_no_image_is_counted(photos):
    (photos / "cats" / "broken.jpg").write_bytes(b"\xff\xd8\xff and nothing")
    (photos / "cats" / "film.mp4").write_bytes(b"x")
    (photos / "dogs" / "._1.png").write_bytes(b"x")
    (photos / ".DS_Store").write_bytes(b"x")
    (photos / "README").write_bytes(b"x")
    os.mkfifo(photos / "dogs" / "pipe.png")
    (photos / "dogs" / "gone.png").symlink_to("nowhere")
    (photos / "dogs" / "all").symlink_to(photos / "cats", target_is_directory=True)
    (photos / "itself").symlink_to("itself")
    draw(photos / "all.png", 5)
    Image.fromarray(np.zeros((2, 2), np.float32)).save(photos / "dogs" / "float.tif")
    source = ImageFolder(str(photos), size=4, channels=1)
    found = source.load()
    assert source.dropped == {
        "broken_images": 1, "unscaled_images": 1, "other_files": 4, "hidden_files": 2, "images_without_a_class": 1,
        "links_not_followed": 2,
    }  # fmt: skip
    assert len(found["train"]) + len(found["test"]) == 15
    source.load()
    assert source.dropped["other_files"] == 4  # loading again counts nothing twice


# ---------------------------------------------------------------------------------------------------- size and channels
def test_size_and_channels_are_those_of_the_images_where_all_agree(photos, capsys):
    assert ImageFolder(str(photos)).load()["train"].x.shape[1:] == (1, 4, 4)
    assert ImageFolder(str(photos), size=[2, 3], channels=3).load()["train"].x.shape[1:] == (3, 2, 3)
    assert capsys.readouterr().out == ""
    draw(photos / "dogs" / "large.png", 1, (5, 7), colour=True)
    assert ImageFolder(str(photos)).load()["train"].x.shape[1:] == (3, 32, 32)
    assert "images of 2 sizes are brought to 32x32; data.source.size=" in capsys.readouterr().out


def test_large_images_are_not_taken_as_they_are(tmp_path):
    for name in "ab":
        for i in range(3):
            draw(tmp_path / name / f"{i}.png", i, (257, 10))
    assert ImageFolder(str(tmp_path), test_fraction=0.4).load()["train"].x.shape[1:] == (1, 32, 32)


def test_more_than_fits_into_memory_is_refused_with_figures(photos, monkeypatch):
    monkeypatch.setattr(room, "memory", lambda: 20_000)
    assert len(ImageFolder(str(photos), size=[25, 26]).load()["train"]) == 12  # 15 * 650 = 9,750 bytes
    with pytest.raises(DataError, match=r"15 images of 26x26: .* set data\.source\.size smaller$"):
        ImageFolder(str(photos), size=26).load()


def test_memory_is_the_machine_s_or_the_container_s(monkeypatch, tmp_path):
    monkeypatch.setattr(room, "CGROUP", tmp_path / "memory.max")
    machine = room.memory()
    assert machine is not None and machine > 2**28
    (tmp_path / "memory.max").write_text("max\n")
    assert room.memory() == machine
    (tmp_path / "memory.max").write_text("1000\n")
    assert room.memory() == 1000
    room.refuse_too_large("x", 500, "no")
    (tmp_path / "memory.max").write_text("5000000000\n")
    with pytest.raises(DataError, match=r"^x: 2\.6 GB in memory, and this machine has 5\.0 GB; do less$"):
        room.refuse_too_large("x", 2_600_000_000, "do less")


# ------------------------------------------------------------------------------------------------------------- identity
def test_identity_is_what_the_files_hold(photos, tmp_path):
    def of(**how: object) -> str:
        return ImageFolder(str(photos), cache=str(tmp_path / "cache"), **how).sha256()

    before = of()
    assert before == of() == ImageFolder(str(photos)).sha256()
    assert len({before, of(size=3), of(channels=3), of(test_fraction=0.3), of(split_seed=1)}) == 5
    (photos / "notes.txt").write_text("x")  # what is not read is no part of it
    assert of() == before
    (photos / "dogs" / "4.png").rename(photos / "cats" / "4b.png")
    moved = of()
    (photos / "cats").rename(photos / "zebras")
    renamed = of()
    status = os.stat(photos / "dogs" / "0.png")
    draw(photos / "dogs" / "0.png", 99)
    changed = of()
    assert len({before, moved, renamed, changed}) == 4
    assert os.stat(photos / "dogs" / "0.png").st_mtime_ns != status.st_mtime_ns


def test_files_that_did_not_change_are_not_read_again(photos, tmp_path, monkeypatch):
    for path in photos.rglob("*.png"):
        os.utime(path, (1, 1))
    source = ImageFolder(str(photos), cache=str(tmp_path / "cache"))
    with monkeypatch.context() as patch:
        patch.setattr(image_folder, "RECENT_NS", 0)
        identity = source.sha256()
    read = []
    original = image_folder._sha256
    monkeypatch.setattr(image_folder, "_sha256", lambda path: read.append(Path(path).name) or original(path))
    assert source.sha256() == identity and read == []
    draw(photos / "cats" / "3.png", 33)
    assert source.sha256() != identity and read == ["3.png"]
    assert source.sha256() != identity and read == ["3.png"] * 2  # so lately changed that it may change again unseen
    (kept,) = (tmp_path / "cache").glob("hashes-*.json")
    for damaged in ("{", "[]", json.dumps(dict.fromkeys(json.loads(kept.read_text()), 3))):
        kept.write_text(damaged)
        draw(photos / "cats" / "3.png", 3)
        os.utime(photos / "cats" / "3.png", (1, 1))
        assert source.sha256() == identity


def test_a_file_of_another_s_size_and_time_is_read(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(image_folder, "RECENT_NS", 0)
    cat, dog = photos / "cats" / "0.png", photos / "dogs" / "0.png"
    for path in (cat, dog):
        path.write_bytes(path.read_bytes().ljust(200, b" "))
        os.utime(path, (1, 1))
    source = ImageFolder(str(photos), cache=str(tmp_path / "cache"))
    seen = [source.sha256()]
    for change in ("exchanged", "written"):
        if change == "exchanged":
            cat.rename(tmp_path / "x")
            dog.rename(cat)
            (tmp_path / "x").rename(dog)
        else:
            dog.write_bytes(cat.read_bytes())
        os.utime(dog, (1, 1))
        seen.append(source.sha256())
        assert seen[-1] == ImageFolder(str(photos)).sha256()
    assert len(set(seen)) == 3


def test_identity_needs_neither_torch_nor_pillow(photos):
    code = (
        "import sys; from frugal.data.image_folder import ImageFolder; "
        f"ImageFolder({str(photos)!r}).sha256(); print([m for m in ('torch', 'PIL', 'lightning') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


# ---------------------------------------------------------------------------------------------------------------- cache
def test_images_are_decoded_once(photos, tmp_path, monkeypatch):
    (photos / "cats" / "broken.png").write_bytes(b"x")

    def load() -> tuple[dict, dict]:
        source = ImageFolder(str(photos), cache=str(tmp_path / "cache"))
        return source.load(), source.dropped

    def same(one: tuple[dict, dict], other: tuple[dict, dict]) -> bool:
        splits = all(np.array_equal(one[0][name].x, other[0][name].x) for name in ("train", "test"))
        return splits and one[1] == other[1] == {"broken_images": 1}

    first = load()
    decoded = []
    original = image_folder.read_images
    monkeypatch.setattr(image_folder, "read_images", lambda *given: decoded.append(1) or original(*given))
    assert same(first, load()) and not decoded
    uncached = ImageFolder(str(photos))
    assert same(first, (uncached.load(), uncached.dropped)) and len(decoded) == 1
    ImageFolder(str(photos), size=3, cache=str(tmp_path / "cache")).load()
    assert len(list((tmp_path / "cache").glob("images-*.npy"))) == 2 and len(decoded) == 2
    assert not list((tmp_path / "cache").glob(".*"))


@pytest.mark.parametrize(
    "damage",
    ["bytes", "cut", "no json", "wrong json", "deep json", "no array", "signed", "other shape", "row 99", "row -1"],
)
def test_a_damaged_cache_is_made_anew(photos, tmp_path, damage):
    source = ImageFolder(str(photos), cache=str(tmp_path / "cache"))
    before = source.load()["train"].x
    (array,) = (tmp_path / "cache").glob("images-*.npy")
    content = array.read_bytes()
    if damage == "bytes":
        array.write_bytes(content[:-1] + bytes([content[-1] ^ 255]))
    elif damage == "cut":
        array.write_bytes(content[:-8])
    elif damage in ("signed", "other shape"):
        old, new = (b"'|u1'", b"'|i1'") if damage == "signed" else (b"4, 4)", b"2, 8)")
        assert old in content
        array.write_bytes(content.replace(old, new))
    elif damage.startswith("row"):
        meta = json.loads(array.with_suffix(".json").read_text())
        array.with_suffix(".json").write_text(json.dumps(meta | {"unread": {damage.split()[1]: "x"}}))
    elif damage == "deep json":
        array.with_suffix(".json").write_text("[" * 100_000)
    elif damage == "no array":
        array.unlink()
    elif damage == "no json":
        array.with_suffix(".json").unlink()
    else:
        array.with_suffix(".json").write_text("[1]")
    assert np.array_equal(source.load()["train"].x, before) and array.read_bytes() == content


def test_what_a_killed_maker_left_is_no_harm(photos, tmp_path):
    source = ImageFolder(str(photos), cache=str(tmp_path / "cache"))
    before = source.load()["train"].x
    (array,) = (tmp_path / "cache").glob("images-*.npy")
    array.rename(array.with_name(f".{array.name}.part"))
    array.with_suffix(".json").unlink()
    assert np.array_equal(source.load()["train"].x, before) and len(array.read_bytes()) == 128 + 15 * 16


def test_a_cache_that_cannot_be_written_is_named(photos, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"set paths\.cache_dir"):
        ImageFolder(str(photos), cache=str(tmp_path / "file")).load()


# ------------------------------------------------------------------------------------------------------ what is refused
def refused(path: Path, **how: object) -> str:
    with pytest.raises(DataError) as caught:
        ImageFolder(str(path), **how).load()
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


def test_folders_that_are_none(tmp_path, photos):
    assert f"data.source.path={tmp_path / 'none'}: there is no such folder" in refused(tmp_path / "none")
    assert "a file; name the folder" in refused(photos / "cats" / "1.png")
    (tmp_path / "empty").mkdir()
    assert "no folder of a class; it needs a folder of images for each" in refused(tmp_path / "empty")
    assert "no folder of a class (10 images without a class)" in refused(photos / "cats")
    assert "only the class 'photos'" in refused(tmp_path / "one" if (tmp_path / "one").exists() else _above(photos))


def _above(photos: Path) -> Path:
    """A folder with `photos` alone in it."""
    (photos.parent / "one").mkdir()
    return photos.rename(photos.parent / "one" / "photos").parent


def test_empty_classes(photos, splits):
    (photos / "foxes").mkdir()
    assert "foxes: no image; give it some, or remove the folder" in refused(photos)
    (photos / "foxes" / "film.mp4").write_bytes(b"x")
    assert "foxes: no image (1 other files)" in refused(photos)
    draw(photos / "foxes" / "1.png", 1).write_bytes(b"x")
    assert "no image of the class 'foxes' can be read to train on (1 other files, 1 broken images)" in refused(photos)
    (splits / "test" / "b" / "0.png").unlink()
    assert "test: no image" in refused(splits)
    (splits / "test" / "b" / "0.png").write_bytes(b"x")
    assert "no image of the test split can be read (1 broken images)" in refused(splits)


def test_mixed_layouts(splits, photos):
    draw(splits / "cats" / "1.png", 1)
    assert "cats/ lies beside it; take either train/CLASS/* or CLASS/*" in refused(splits)
    (splits / "cats" / "1.png").unlink()
    (splits / "cats").rename(splits / "validation")
    assert "validation/ has no folder a class in it, as test/ has" in refused(splits)
    (splits / "validation" / "a").mkdir()
    assert "valid/ and validation/ are both the val split" in refused(splits)
    (splits / "validation" / "a").rmdir()
    (splits / "validation").rmdir()
    draw(splits / "test" / "c" / "0.png", 1)
    assert f"{splits / 'test'}: has a class 'c', which {splits / 'train'} lacks" in refused(splits)
    (splits / "train").rename(splits.parent / "gone")
    assert "has test/ but no train/" in refused(splits)
    (photos / "cats").rename(photos / "train")
    (photos / "dogs").rename(photos / "test")
    assert "test/ has no folder a class in it" in refused(photos)


def test_too_few_to_cut(tmp_path):
    for name in "ab":
        draw(tmp_path / name / "0.png", 1 + ord(name))
    assert "2 images leave none for testing" in refused(tmp_path)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"path": ""}, "data.source.path: name a folder"),
        ({"size": 0}, "data.source.size=0"),
        ({"size": [1, 2, 3]}, r"data.source.size=\[1, 2, 3\]"),
        ({"channels": 2}, "data.source.channels=2"),
        ({"test_fraction": 1.0}, "data.source.test_fraction=1.0"),
    ],
)
def test_bad_settings(how, says):
    with pytest.raises(SettingsError, match=says):
        ImageFolder(**{"path": "photos", **how})


def test_of_two_that_want_it_one_makes_it(photos, tmp_path, monkeypatch, capsys):
    """The second waits for the first's lock, and takes what that one made."""
    decoded = []
    original = image_folder.read_images

    def slowly(*given):
        decoded.append(1)
        time.sleep(0.2)
        return original(*given)

    monkeypatch.setattr(image_folder, "read_images", slowly)
    with ThreadPoolExecutor(2) as pool:
        sources = [ImageFolder(str(photos), cache=str(tmp_path / "cache")) for _ in range(2)]
        first, second = pool.map(lambda source: source.load()["train"].x, sources)
    assert np.array_equal(first, second) and len(decoded) == 1
    assert "another process is making it; waiting" in capsys.readouterr().out


def test_the_example_of_the_docs_makes_what_is_trained_on(tmp_path, monkeypatch, repository):
    monkeypatch.chdir(tmp_path)
    page = (repository / "docs" / "own_data.md").read_text()
    first = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)[0]
    exec(compile(first, "own_data.md", "exec"), {})
    source = ImageFolder("photos")
    splits = source.load()
    assert source.class_names == [str(digit) for digit in range(10)] and len(list(Path("new").iterdir())) == 20
    assert len(splits["train"]) + len(splits["test"]) == 1777 and splits["train"].x.shape[1:] == (1, 28, 28)
