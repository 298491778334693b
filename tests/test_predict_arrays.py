"""`frugal predict` for images, tables and quantities: what the network itself says of them, whatever they come in."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from safetensors.torch import save_file

import command
import project
from command import frugal
from frugal import artefact, settings
from frugal.data.image_folder import ImageFolder
from frugal.predict import output as output_module
from frugal.predict.arrays import Model
from frugal.train import keep_confusion

NAMES = ["dark", "grün", "light, bright"]
FEATURES = ["age", "bmi", "s1"]
SHORT = ["measure=none", "trainer.threads=1", "logger=none"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Runs of images (`logs/images/...`), of a table's classes (`rows`) and of a quantity (`price`), each trained a
    little, and what they were trained on."""
    path = project.make(tmp_path_factory.mktemp("home"))
    draw = np.random.Generator(np.random.PCG64(0))
    for label, name in enumerate(NAMES):
        (path / "photos" / name).mkdir(parents=True)
        for i in range(20):
            image = draw.integers(0, 60, (10, 12), dtype=np.uint8) + np.uint8(90 * label)
            Image.fromarray(image).save(path / "photos" / name / f"{i:02}.png")
    table = draw.normal(size=(80, 3)) * [1, 10, 100]
    np.savez(path / "rows.npz", x=table, y=(table[:, 0] > 0) * 2 + 1, feature_names=FEATURES)
    np.savez(path / "price.npz", x=table, y=5000 + 10 * table[:, 1])
    with pytest.MonkeyPatch.context() as patch, command.inside(path, path / "logs", patch):
        for words in (
            ["data=image_folder", "data.source.path=photos", "trainer.max_epochs=2", "run.experiment=images"],
            ["data=array_file", "data.source.path=rows.npz", "preprocess=features", "trainer.max_epochs=8",
             "optim.lr=0.1", "run.experiment=rows"],
            ["data=array_file", "data.source.path=price.npz", "data.task=regression", "preprocess=features",
             "model=linear", "trainer.max_epochs=3", "run.experiment=price"],
        ):  # fmt: skip
            done = frugal("train", *words, *SHORT)
            assert done.code == 0, done.err
        yield path


@pytest.fixture(autouse=True)
def _inside(made: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with command.inside(made, made / "logs", monkeypatch):
        yield


def run_of(experiment: str) -> Path:
    (folder,) = command.runs(Path("logs"), experiment)
    return folder


def own(experiment: str, x: np.ndarray) -> np.ndarray:
    """What the network gives for stored samples, by what its artefact says alone: probabilities, or quantities."""
    network, description = artefact.load(run_of(experiment) / "model.safetensors")
    state = description.state["preprocess"]
    mean, std = np.array(state["mean"]), np.array(state["std"])
    if x.ndim == 4:
        mean, std = mean[:, None, None], std[:, None, None]
    with torch.inference_mode():
        out = network(torch.from_numpy(((x - mean) / std).astype(np.float32)))
    if description.task == "regression":
        return out.numpy() * state["target_std"] + state["target_mean"]
    return out.softmax(dim=1).numpy()


def photos() -> Any:
    return ImageFolder("photos").load()["test"]


def lines(done: command.Outcome) -> list[dict[str, Any]]:
    assert done.code == 0, done.err
    return [json.loads(line) for line in done.out.splitlines()]


def table(done: command.Outcome) -> list[dict[str, str]]:
    assert done.code == 0, done.err
    return list(csv.DictReader(io.StringIO(done.out)))


def stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> str:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    return "input=-"


# ----------------------------------------------------------------------------------------- what the network itself says
def test_arrays_get_what_the_network_says_at_any_batch_size(tmp_path: Path) -> None:
    test = photos()
    np.save(tmp_path / "test.npy", test.x)
    wanted = own("images", test.x)
    run = run_of("images")
    for weights in (run, run / "checkpoints" / "last.ckpt"):
        for size in (1, 7, 64):
            words = [f"input={tmp_path / 'test.npy'}", f"batch_size={size}", "format=jsonl"]
            found = lines(frugal("predict", str(weights), *words))
            assert [row["row"] for row in found] == list(range(len(test)))
            chances = np.array([[row["probabilities"][name] for name in NAMES] for row in found])
            assert np.abs(chances - wanted).max() < 1e-5
            assert [row["label"] for row in found] == [NAMES[label] for label in wanted.argmax(1)]


def test_a_file_of_a_sample_gets_what_its_array_gets(tmp_path: Path) -> None:
    test = photos()
    for i, image in enumerate(test.x):
        Image.fromarray(image[0]).save(tmp_path / f"{i:03}.png")
    np.save(tmp_path / "all.npy", test.x)
    run = str(run_of("images"))
    files = table(frugal("predict", run, f"input={tmp_path}", "batch_size=5"))
    rows = table(frugal("predict", run, f"input={tmp_path / 'all.npy'}"))
    assert [row["file"] for row in files] == [f"{i:03}.png" for i in range(len(test))]
    assert [row["label"] for row in files] == [row["label"] for row in rows]
    assert [row["probability"] for row in files] == [row["probability"] for row in rows]
    assert all(row["error"] == "" for row in files + rows)


def test_the_forms_an_array_may_have(tmp_path: Path) -> None:
    test = photos()
    wanted = own("images", test.x)[:, 0]
    run = str(run_of("images"))
    for name, x in (
        ("grey", test.x[:, 0]), ("last", test.x.transpose(0, 2, 3, 1)), ("flat", test.x.reshape(len(test.x), -1)),
        ("float", test.x.astype(np.float64)), ("big", test.x.astype(">i4")), ("fortran", np.asfortranarray(test.x)),
        ("one", test.x[0]), ("one_grey", test.x[0, 0]), ("one_last", test.x[0].transpose(1, 2, 0)),
    ):  # fmt: skip
        np.save(tmp_path / f"{name}.npy", x)
        found = lines(frugal("predict", run, f"input={tmp_path / name}.npy", "format=jsonl"))
        chances = [row["probabilities"]["dark"] for row in found]
        assert np.abs(chances - wanted[: len(chances)]).max() < 1e-5 and len(chances) == (
            1 if "one" in name else len(wanted)
        )
    np.savez(tmp_path / "a.npz", anything=test.x)
    np.savez(tmp_path / "b.npz", x_test=test.x, y_test=test.y)
    for name in ("a", "b"):
        found = lines(frugal("predict", run, f"input={tmp_path / name}.npz", "format=jsonl"))
        assert np.abs([row["probabilities"]["dark"] for row in found] - wanted).max() < 1e-5


def test_a_quantity_is_in_its_own_units(tmp_path: Path) -> None:
    x = np.load("price.npz")["x"].astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    wanted = own("price", x)[:, 0]
    run = str(run_of("price"))
    found = [float(row["prediction"]) for row in table(frugal("predict", run, f"input={tmp_path / 'x.npy'}"))]
    assert np.allclose(found, wanted, rtol=1e-6) and 4000 < np.mean(found) < 6000 and np.std(found) > 10
    done = frugal("predict", run, f"input={tmp_path / 'x.npy'}", "format=jsonl", "batch_size=3")
    assert np.allclose([row["prediction"] for row in lines(done)], wanted, rtol=1e-6)


# --------------------------------------------------------------------------------------------------------------- tables
def by_names(rows: np.ndarray, names: list[str] = FEATURES, mark: str = ",") -> str:
    return "".join(mark.join(map(str, cells)) + "\n" for cells in (names, *rows.tolist()))


def test_columns_go_by_their_names_or_in_order(tmp_path: Path) -> None:
    x = np.load("rows.npz")["x"]
    wanted = own("rows", x)
    run = str(run_of("rows"))
    moved = np.concatenate([x[:, [2]], np.full((80, 1), 7), x[:, [0, 1]]], axis=1)
    for content in (
        by_names(x), by_names(moved, ["s1", "label", " AGE", "bmi "]), by_names(x, mark=";"), by_names(x, mark="\t"),
        "\ufeff" + by_names(moved, ["s1", "", "age", "bmi"]), by_names(x).partition("\n")[2],
        by_names(x).replace("\n", "\r\n"), by_names(x).replace("\n", "\n\n"),
    ):  # fmt: skip
        (tmp_path / "new.csv").write_text(content, newline="")
        found = lines(frugal("predict", run, f"input={tmp_path / 'new.csv'}", "format=jsonl", "batch_size=9"))
        assert [row["row"] for row in found] == list(range(80))
        assert np.abs([row["probabilities"]["3"] for row in found] - wanted[:, 1]).max() < 1e-5
        assert {row["label"] for row in found} == {"1", "3"}


def test_without_names_in_the_run_a_header_is_passed_over(tmp_path: Path) -> None:
    x = np.load("price.npz")["x"][:5]
    wanted = own("price", x)[:, 0]
    (tmp_path / "new.csv").write_text(by_names(x, ["what", "ever", "else"]))
    done = frugal("predict", str(run_of("price")), f"input={tmp_path / 'new.csv'}")
    assert np.allclose([float(row["prediction"]) for row in table(done)], wanted, rtol=1e-6)
    assert "the first row is taken for the columns' names" in done.err
    x = np.concatenate([[[0, 1, 2]], x]).astype(np.float32)  # a sample that looks like columns' numbers
    (tmp_path / "new.csv").write_text(by_names(x).partition("\n")[2])
    done = frugal("predict", str(run_of("price")), f"input={tmp_path / 'new.csv'}")
    assert np.allclose([float(row["prediction"]) for row in table(done)], own("price", x)[:, 0], rtol=1e-6)
    assert "first row" not in done.err


def test_a_row_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("age,bmi,s1\n1,2,3\n1,x,3\n1,2\n1,nan,3\n1,2,1e39\n,2,3\n4,5,6\n")
    done = frugal("predict", str(run_of("rows")), f"input={tmp_path / 'new.csv'}", "batch_size=2")
    rows = table(done)
    assert [row["row"] for row in rows] == [str(i) for i in range(7)]
    assert [row["error"] for row in rows] == [
        "", "column 'bmi' holds 'x', and no number", "has 2 columns, the first row 3", "holds NaN or infinity",
        "holds NaN or infinity", "column 'age' holds '', and no number", "",
    ]  # fmt: skip
    assert [bool(row["label"]) for row in rows] == [not row["error"] for row in rows]
    assert "5 of 7 cannot be used: see error" in done.err and "2 samples in" in done.err
    found = lines(frugal("predict", str(run_of("rows")), f"input={tmp_path / 'new.csv'}", "format=jsonl"))
    assert found[1] == {"row": 1, "label": None, "probabilities": None, "error": rows[1]["error"]}
    assert "error" not in found[0]


@pytest.mark.parametrize(
    ("experiment", "value", "says"),
    [("rows", float("nan"), "NaN"), ("price", float("nan"), "NaN"), ("price", float("inf"), "infinity")],
)
def test_what_a_network_gives_that_is_no_number_is_an_error(
    experiment: str, value: float, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Model.__call__

    def broken_above_5(model: Model, samples: Any) -> list[list[float]]:
        found = original(model, samples)
        return [[value] * len(row) if x[0] > 5 else row for x, row in zip(samples, found, strict=True)]

    monkeypatch.setattr(Model, "__call__", broken_above_5)
    run, name, error = (
        str(run_of(experiment)),
        "label" if experiment == "rows" else "prediction",
        f"the network gave {says}",
    )
    done = frugal("predict", run, stdin(monkeypatch, b"9,2,3\n1,2,3\n"), "format=jsonl")
    bad, good = [json.loads(line, parse_constant=pytest.fail) for line in done.out.splitlines()]
    assert bad[name] is None and bad["error"] == error and good[name] is not None and "error" not in good
    assert "frugal: 1 of 2 cannot be used: see error\n" in done.err and "frugal: 1 samples in" in done.err
    bad, good = table(frugal("predict", run, stdin(monkeypatch, b"9,2,3\n1,2,3\n")))
    assert bad[name] == "" and bad["error"] == error and good[name] and not good["error"]
    done = frugal("predict", run, stdin(monkeypatch, b"9,2,3\n"), f"output={tmp_path / 'out.csv'}")
    assert done.code != 0 and f"nothing in it can be used; 0: {error}" in done.error
    assert not (tmp_path / "out.csv").exists()


def test_no_cell_is_a_formula() -> None:
    written: list[str] = []
    rows = output_module.Rows(settings_of(format="csv"), written.append, "file", ["=1+1", "b"], errors=True)
    rows.add("@a  b.png", [0.9, 0.1])
    rows.add("-5", [0.1, 0.9])
    rows.add("a  b.png", None, "=no")
    rows.flush()
    _, *cells = csv.reader(io.StringIO("".join(written)))
    assert cells == [["'@a  b.png", "'=1+1", "0.900000", ""], ["-5", "b", "0.900000", ""], ["a  b.png", "", "", "'=no"]]
    rows = output_module.Rows(settings_of(format="csv"), written.append, "row", None, errors=True)
    rows.add(0, [-1e-7])
    rows.flush()
    assert written[-1].endswith("0,-1e-07,\n")
    rows = output_module.Rows(settings_of(format="jsonl"), written.append, "file", ["=1+1", "b"], errors=True)
    rows.add("@a.png", [0.9, 0.1])
    rows.flush()
    assert json.loads(written[-1])["label"] == "=1+1" and json.loads(written[-1])["file"] == "@a.png"


def settings_of(**given: str) -> DictConfig:
    return OmegaConf.create({"output": None, **given})


def test_the_confusion_matrix_has_no_formula(tmp_path: Path) -> None:
    run: Any = SimpleNamespace(folder=tmp_path)
    module: Any = SimpleNamespace(confusion=torch.tensor([[3, 1], [0, 2]]))
    data: Any = SimpleNamespace(class_names=["=1+1", "-5"])
    keep_confusion(run, module, data)
    assert (tmp_path / "confusion.csv").read_text() == "true,'=1+1,-5\n'=1+1,3,1\n-5,0,2\n"


def test_a_table_of_pixels(tmp_path: Path) -> None:
    x = photos().x[:3]
    (tmp_path / "pixels.csv").write_text("\n".join(",".join(map(str, row)) for row in x.reshape(3, -1).tolist()))
    found = lines(frugal("predict", str(run_of("images")), f"input={tmp_path / 'pixels.csv'}", "format=jsonl"))
    assert np.abs([row["probabilities"]["dark"] for row in found] - own("images", x)[:, 0]).max() < 1e-5


# -------------------------------------------------------------------------------------------------------------- folders
def test_a_folder_is_labelled_whole(tmp_path: Path) -> None:
    shade = np.full((20, 24), 20, np.uint8)
    (tmp_path / "in").mkdir()
    Image.fromarray(shade).save(tmp_path / "z.png")
    Image.fromarray(np.stack([shade + 200] * 3, axis=2)).save(tmp_path / "in" / "b.bmp")
    Image.fromarray(shade[:10, :12]).save(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "broken.jpg").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".hidden.png").write_bytes(b"x")
    done = frugal("predict", str(run_of("images")), f"input={tmp_path}", "format=jsonl")
    found = lines(done)
    assert [row["file"] for row in found] == ["z.png", "in/a.png", "in/b.bmp", "in/broken.jpg"]
    assert [row["label"] for row in found] == ["dark", "dark", "light, bright", None]
    assert found[3]["error"] == "no image that can be read"
    assert "frugal: 1 of 4 cannot be used: see error\n" in done.err
    assert "frugal: 1 other files, 1 hidden files, 2 brought to 12x10, 1 made grey\n" in done.err


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    x, run = photos().x[:1], str(run_of("images"))
    wanted = own("images", x)[0]
    for kind in ("PNG", "BMP", "TIFF", "npy", "npz"):
        buffer = io.BytesIO()
        if kind == "npy":
            np.save(buffer, x)
        elif kind == "npz":
            np.savez(buffer, x)
        else:
            Image.fromarray(x[0, 0]).save(buffer, kind)
        (row,) = lines(frugal("predict", run, stdin(monkeypatch, buffer.getvalue()), "format=jsonl"))
        assert row["file" if kind.isupper() else "row"] == ("-" if kind.isupper() else 0)
        assert np.abs([row["probabilities"][name] for name in NAMES] - wanted).max() < 1e-5
    for content, count in (("BMI,s1,age\n1,2,3\n4,5,6\n", 2), ("1,2,3", 1), ("1.000000,2.000000,3.000000\n" * 3, 3)):
        assert len(table(frugal("predict", str(run_of("rows")), stdin(monkeypatch, content.encode())))) == count


# --------------------------------------------------------------------------------------------------------------- output
def test_output_comes_batch_by_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(output_module, "_to_stdout", written.append)
    assert frugal("predict", str(run_of("price")), stdin(monkeypatch, b"1,2,3\n" * 5), "batch_size=2").code == 0
    assert [text.count("\n") for text in written] == [3, 2, 1]  # the header comes with the first


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, file = str(run_of("price")), tmp_path / "out.csv"
    wanted = frugal("predict", run, stdin(monkeypatch, b"1,2,3\n4,5,6\n"))
    done = frugal("predict", run, stdin(monkeypatch, b"1,2,3\n4,5,6\n"), f"output={file}")
    assert done.out == "" and file.read_text() == wanted.out and file.stat().st_mode & 0o777 == 0o644
    file.write_text("before")
    broken = b"1,2,3\n" * 5 + b'"' + b"1" * 200_000 + b"\n"  # a cell longer than the csv module takes
    for content, says in (
        (broken, "cannot be read after row 4"),
        (b"", "holds nothing to predict for"),
        (b"x,y,z\nx,y,z", ""),
    ):
        assert says in frugal("predict", run, stdin(monkeypatch, content), f"output={file}", "batch_size=2").error
        assert file.read_text() == "before" and list(tmp_path.iterdir()) == [file]


# ------------------------------------------------------------------------------------------------------------ bad input
@pytest.mark.parametrize(
    ("experiment", "word", "says"),
    [
        ("images", "", "input=null: name what to classify"),
        ("images", "input=none.png", "input=none.png: No such file"),
        ("images", "input=empty", "input=empty: holds nothing to predict for (1 other files)"),
        ("images", "input=empty/film.mp4", "neither an image nor a folder, an .npy, an .npz or a .csv file"),
        ("images", "input=broken.jpg", "nothing in it can be used; broken.jpg: no image that can be read"),
        ("images", "input=rows.npz", "input=rows.npz: samples are float64 [3]"),
        ("images", "input=small.npy", "samples are uint8 [9, 12]"),
        ("images", "input=text.npy", "samples are <U1 [10, 12]"),
        ("images", "input=objects.npy", "it holds Python objects, which may run code"),
        ("images", "input=none.npy", "input=none.npy: holds nothing to predict for"),
        ("images", "input=two.npz", "has x_train, x_test; save the samples alone, as x"),
        ("rows", "input=photos", "was trained on samples [3], which no image is; give an .npy"),
        ("rows", "input=broken.jpg", "was trained on samples [3], which no image is"),
        ("rows", "input=names.csv", "has no column bmi, s1; it has age, weight, size"),
        ("rows", "input=wide.csv", "input=wide.csv: 4 columns, "),
        ("price", "input=wide.csv", "input=wide.csv: 4 columns, "),
        ("rows", "input=cut.npy", "cut.npy: cannot be read"),
        ("rows", "batch_size=0", "batch_size=0: the least value is 1"),
    ],
)
def test_bad_input_is_one_line(experiment: str, word: str, says: str, made: Path) -> None:
    (made / "empty").mkdir(exist_ok=True)
    (made / "empty" / "film.mp4").write_bytes(b"x")
    (made / "broken.jpg").write_bytes(b"x")
    for name, array in (
        ("small", np.zeros((2, 9, 12), np.uint8)), ("text", np.full((2, 10, 12), "x")),
        ("none", np.zeros((0, 1, 10, 12))), ("cut", np.zeros((9, 3))),
    ):  # fmt: skip
        np.save(made / f"{name}.npy", array)
    (made / "cut.npy").write_bytes((made / "cut.npy").read_bytes()[:-9])
    np.save(made / "objects.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    np.savez(made / "two.npz", x_train=np.zeros(3), x_test=np.zeros(3))
    (made / "names.csv").write_text("age,weight,size\n1,2,3\n")
    (made / "wide.csv").write_text("1,2,3,4\n")
    assert says in frugal("predict", str(run_of(experiment)), *filter(None, [word])).error


@pytest.mark.parametrize(
    ("experiment", "path", "value", "says"),
    [
        ("rows", "dims.input_shape", [3, 1], "describes itself wrongly (dims.input_shape is [3, 1])"),
        ("images", "dims.input_shape", [1, 10**5, 10**5], "holds another network"),
        ("images", "preprocess._target_", "frugal.data.cleaning.Cleaning", "preprocess is no Preprocess"),
        ("images", "preprocess._target_", "os.system", "not from an allowed package"),
        ("images", "state.preprocess", {"mean": "x", "std": [1]}, "describes itself wrongly"),
        ("images", "state.preprocess", {"mean": [1.0] * 5, "std": [1.0] * 5}, "its network cannot predict"),
        ("images", "state.preprocess", None, "state.preprocess is missing"),
        ("images", "state.class_names", ["a"], "state.class_names has 1 names, dims.classes is 3"),
        ("images", "task", "regression", "describes itself wrongly (its network gives [1, 3] for 1 samples, not 1"),
        ("images", "task", "ranking", "was trained for ranking, of which nothing can be predicted"),
        ("rows", "state.feature_names", ["a"], "describes itself wrongly"),
        ("price", "state.preprocess.target_mean", "x", "describes itself wrongly"),
    ],
)
def test_what_a_crafted_file_says_is_one_line(
    experiment: str, path: str, value: Any, says: str, tmp_path: Path
) -> None:
    state, plain = artefact.read(run_of(experiment) / "model.safetensors")
    node = plain
    *above, last = path.split(".")
    for key in above:
        node = node[key]
    node[last] = value
    save_file(state, tmp_path / "a.safetensors", metadata={"frugal": json.dumps(plain)})
    np.save(tmp_path / "x.npy", np.zeros((1, 10, 12) if experiment == "images" else (1, 3), np.uint8))
    assert says in frugal("predict", str(tmp_path / "a.safetensors"), f"input={tmp_path / 'x.npy'}").error


def test_how_samples_were_stored_says_what_is_taken(tmp_path: Path) -> None:
    """Bytes for bytes: fractions of them are somebody's other scale. And no image is a sample of fractions."""
    state, plain = artefact.read(run_of("images") / "model.safetensors")
    x = photos().x[:2]
    run = str(tmp_path / "a.safetensors")
    for stored, array, error in (
        ("uint8", x.astype(np.float32), ""),
        ("uint8", x / 255, "holds other numbers than 0 to 255, the bytes of the images in training"),
        ("uint8", x.astype(int) - 300, "holds other numbers than 0 to 255, the bytes of the images in training"),
        ("float32", x / 255, ""),
    ):
        plain["state"]["dtype"] = stored
        save_file(state, run, metadata={"frugal": json.dumps(plain)})
        np.save(tmp_path / "x.npy", array)
        done = frugal("predict", run, f"input={tmp_path / 'x.npy'}")
        assert [row["error"] for row in csv.DictReader(io.StringIO(done.out))] == [error] * 2
    assert "was trained on samples [1, 10, 12] of fractions" in frugal("predict", run, "input=photos").error


def test_help_and_what_settings_may_be() -> None:
    assert "an image, or a folder of them" in frugal("predict", "--help").out
    assert settings.Predict().batch_size == 64
