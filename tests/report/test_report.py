"""The report as a whole, on folders of made-up records."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from made_up import evaluation, record, write

from frugal.console import plain
from frugal.errors import FrugalError
from frugal.record import Latency
from frugal.report import main, report, summary
from frugal.report.figures import artefact_latency, train_seconds
from frugal.report.text import cell_text


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_table_csv_markdown_and_plots(tmp_path: Path) -> None:
    values = {"simple_net": (0.90, 0.92, 0.94), "lenet5": (0.97, 0.98, 0.99)}
    write(tmp_path, *(record(seed=s, model=m, accuracy=v) for m, vs in values.items() for s, v in enumerate(vs)))
    made = report([tmp_path])
    assert [file.name for file in made.files] == ["report.csv", "pareto.png", "report.md", "report.html"]
    assert {file.parent for file in made.files} == {tmp_path}
    assert made.statuses == {"completed": 6}
    first, second = table((tmp_path / "report.csv").read_text())
    assert (first["option.model"], first["seeds"], first["completed"], first["pareto"]) == (
        "lenet5",
        "0 1 2",
        "3",
        "true",
    )
    assert float(first["test/accuracy"]) == pytest.approx(0.98)
    assert float(first["test/accuracy_ci95"]) == pytest.approx(4.302653 * 0.01 / 3**0.5, rel=1e-6)
    assert float(first["file_bytes"]) == 1000 and first["energy_train_j"] == ""  # raw; absent is nothing, never 0
    assert second["pareto"] == "false" and second["fronts"] == ""
    markdown = (tmp_path / "report.md").read_text()
    cells = "lenet5 | 3 | 98.00 ± 2.48 | 0.3000 ± 0.0000 | 10.0 | 20.0 | 100 | 300 | 1.000 | 0.0500 | ★ time, size"
    assert f"| {cells}, latency |" in markdown
    assert "![Pareto plots](pareto.png)" in markdown
    shown = plain(made.table)
    assert "6 runs in 2 groups: 6 completed" in shown and "98.00 ± 2.48" in shown
    png = (tmp_path / "pareto.png").read_bytes()
    assert png.startswith(b"\x89PNG\r\n") and len(png) > 10_000


def test_writes_the_same_bytes_again_and_leaves_nothing_beside(tmp_path: Path) -> None:
    write(tmp_path, record(), record(lr=0.5))
    before = {file.name: file.read_bytes() for file in report([tmp_path]).files}
    after = {file.name: file.read_bytes() for file in report([tmp_path]).files}
    assert before == after
    left = sorted(p.name for p in tmp_path.iterdir() if p.is_file())
    assert left == ["pareto.png", "report.csv", "report.html", "report.md"]


def test_one_run_has_no_interval(tmp_path: Path) -> None:
    write(tmp_path, record(accuracy=0.9))
    made = report([tmp_path / "run0000"])
    assert "±" not in made.markdown and "| 90.00 |" in made.markdown
    assert made.rows[0]["test/accuracy_ci95"] is None
    assert (tmp_path / "run0000" / "report.md").exists()


def test_file_run_experiment_and_all_are_read_once(tmp_path: Path) -> None:
    write(tmp_path / "exp", record(), record(lr=0.5))
    file = tmp_path / "exp" / "run0000" / "record.json"
    made = report([file, file.parent, tmp_path / "exp", tmp_path], out=tmp_path / "out", plots=False)
    assert made.statuses == {"completed": 2}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["report.csv", "report.html", "report.md"]


def test_what_did_not_complete_is_listed_with_its_error(tmp_path: Path) -> None:
    write(
        tmp_path,
        record(seed=0),
        record(seed=1, status="failed", error="RuntimeError: out of\nmemory"),
        record(model="lenet5", status="refused", error="precision=fp8 needs a GPU"),
        record(model="lenet5", seed=3, status="running"),
        record(model="lenet5", seed=4, status="interrupted"),
    )
    made = report([tmp_path], plots=False)
    shown = plain(made.table)
    assert "RuntimeError: out of memory" in shown and "precision=fp8 needs a GPU" in shown
    assert "cut off lenet5" in shown and "interrupted" in shown
    assert made.statuses == {"completed": 1, "failed": 1, "refused": 1, "running": 1, "interrupted": 1}
    assert "1, 1 failed" in shown
    rows = made.rows
    assert [(r["completed"], r["failed"], r["refused"], r["running"]) for r in rows] == [(1, 1, 0, 0), (0, 0, 1, 1)]
    assert rows[1]["test/accuracy"] is None


def test_only_failures_make_a_report_too(tmp_path: Path) -> None:
    write(tmp_path, record(status="failed", error="boom"))
    made = report([tmp_path])
    assert "boom" in plain(made.table) and [file.name for file in made.files] == [
        "report.csv",
        "report.md",
        "report.html",
    ]


@pytest.mark.parametrize(
    "content",
    [
        b"{nope",
        b"[1, 2]",
        b'{"schema": 99}',
        b"\xff\xfe\x00",
        b'{"schema": 1, "status": "done"}',
        b"",
        b'{"schema": 1, "status": "completed", "config": [1]}',
        b'{"schema": 1, "latency": [{"backend": "x"}]}',
        b'{"schema": 1, "config": ' + b'{"a": ' * 100_000,
    ],
)
def test_a_foreign_file_is_named_and_skipped(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, record())
    (tmp_path / "alien").mkdir()
    (tmp_path / "alien" / "record.json").write_bytes(content)
    made = report([tmp_path], plots=False)
    assert made.statuses == {"completed": 1}
    assert len(made.skipped) == 1 and "alien" in made.skipped[0] and "\n" not in made.skipped[0]


def test_one_odd_value_costs_its_own_record_only(tmp_path: Path) -> None:
    """What a report groups or compares by has its type, or the record is skipped by its key."""
    odd = [
        *[("fingerprint", name, []) for name in ("device", "threads", "python", "data_sha256", "effective_batch")],
        *[("run", name, {}) for name in ("hash", "command", "source_sha256", "seed")],
        ("run", "hash", None),
        ("config", "seed", []),
        ("run", "seed", True),
        ("time", "ledger_s", {"startup": "long"}),
        *[("latency", name, float("nan")) for name in ("batch", "threads", "backend", "status")],
    ]
    write(tmp_path, record(), *(record(lr=0.5) for _ in odd))
    for index, (section, name, value) in enumerate(odd, 1):
        file = tmp_path / f"run{index:04d}" / "record.json"
        plain = json.loads(file.read_text())
        (plain["latency"][1] if section == "latency" else plain[section])[name] = value
        file.write_text(json.dumps(plain))
    made = report([tmp_path], plots=False)
    assert made.statuses == {"completed": 1} and len(made.skipped) == len(odd)
    for (section, name, _), line in zip(odd, made.skipped, strict=True):
        assert f"record.json: not a record ({section}.{name}" in line and "\n" not in line


def test_a_figure_beyond_a_float_is_left_out_and_half_a_surrogate_dropped(tmp_path: Path) -> None:
    made = [record(seed=0), record(seed=1), record(seed=2, model="\ud800net", name="a\udc00b")]
    made[0].quality["test/accuracy"] = 10**400
    made[1].quality["test/loss"] = 1e300
    write(tmp_path, *made)
    first, second = table(report([tmp_path], plots=False).csv)
    assert first["test/accuracy"] == "0.9" and first["option.model"] in ("simple_net", "net")
    assert {first["option.model"], second["option.model"]} == {"simple_net", "net"}


def test_no_cell_is_a_formula() -> None:
    assert [cell_text(word) for word in ("=1+1", "+a", "-b", "@c")] == ["'=1+1", "'+a", "'-b", "'@c"]
    assert [cell_text(word) for word in ("-1.5e-3", "a\n=b", -2, None, True)] == ["-1.5e-3", "a =b", -2, None, "true"]


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_nothing_found_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FrugalError, match=r"no record\.json") as caught:
        report([tmp_path / name])
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_names_cannot_break_out(tmp_path: Path) -> None:
    evil = "[red]a|b<script>\n*x*[/red] `c`"
    write(
        tmp_path,
        record(model=evil, name=evil),
        record(model="=1+1"),
        record(model=evil, seed=2, status="failed", error=evil),
    )
    made = report([tmp_path], plots=True)
    shown = plain(made.table)
    assert "[red]a|b<script> *x*[/red] `c`" in shown
    lines = [line for line in made.markdown.splitlines() if line.startswith("| ")]
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1  # every row has the same number of cells
    assert "<script>" not in made.markdown and "\\[red\\]a\\|b&lt;script&gt; \\*x\\*" in made.markdown
    rows = {row["option.model"] for row in table(made.csv)}
    assert rows == {"[red]a|b<script> *x*[/red] `c`", "'=1+1"}  # a spreadsheet must not run it


def test_rows_are_whole_however_long(tmp_path: Path) -> None:
    long = "x" * 3000
    write(tmp_path, record(model=long), record(model="y"))
    lines = plain(report([tmp_path], plots=False).table).splitlines()
    assert sum(long in line and "★" in line for line in lines) == 1


def test_a_narrow_terminal_drops_columns_and_names_them(tmp_path: Path) -> None:
    from rich.console import Console

    write(tmp_path, record(), record(model="lenet5"))
    made = report([tmp_path], plots=False)
    narrow = Console(file=io.StringIO(), width=60)
    narrow.print(made.table)
    assert isinstance(narrow.file, io.StringIO)
    text = narrow.file.getvalue()
    assert "Left out on 60 columns: wall, loss" in text
    rows = [line.split() for line in text.splitlines() if "★" in line]
    assert rows[0][:2] == ["lenet5", "1"] and rows[0][-1] == "★"  # whole, on one line, of the Pareto column the star
    assert "wall" in plain(made.table) and "Left out" not in plain(made.table)


def test_the_pareto_note_names_what_was_measured(tmp_path: Path) -> None:
    write(tmp_path, record(latency=None), record(lr=0.5, latency=None))
    assert "of accuracy against train time, file size;" in report([tmp_path], plots=False).notes[0]


def test_fingerprints_are_not_mixed(tmp_path: Path) -> None:
    write(tmp_path, record(seed=0), record(seed=1, accuracy=0.2, fingerprint={"torch": "2.11"}))
    made = report([tmp_path])
    assert [row["set"] for row in made.rows] == ["A", "B"] and [row["n_seeds"] for row in made.rows] == [1, 1]
    assert "torch 2.13" in made.markdown and "torch 2.11" in made.markdown


def test_sort_and_metric(tmp_path: Path) -> None:
    write(tmp_path, record(lr=10.0, accuracy=0.9, loss=0.1, train=9), record(lr=9.0, accuracy=0.8, loss=0.01, train=5))

    def order(**given: str) -> list[str]:
        return [row["option.lr"] for row in report([tmp_path], plots=False, **given).rows]

    assert order() == ["10", "9"]
    assert order(sort="lr") == ["9", "10"]  # as numbers
    assert order(sort="train") == order(metric="test/loss") == order(metric="loss") == ["9", "10"]
    assert order(sort="samples/s") == ["9", "10"]
    with pytest.raises(FrugalError, match="--sort trian: no such column; did you mean train"):
        order(sort="trian")
    with pytest.raises(FrugalError, match="--metric f1: no record has it; there is test/accuracy, test/loss"):
        order(metric="f1")


def test_a_metric_of_ones_own_becomes_a_column(tmp_path: Path) -> None:
    made = [record(lr=lr) for lr in (0.1, 0.2)]
    made[0].quality["test/perplexity"], made[1].quality["test/perplexity"] = 12.5, 11.25
    write(tmp_path, *made)
    found = report([tmp_path], metric="perplexity", plots=False)
    assert found.rows[0]["test/perplexity"] == 11.25 and "| perplexity |" in found.markdown


def test_since_counts_what_is_new(tmp_path: Path) -> None:
    write(tmp_path, record(seed=0), record(seed=1))
    made = report([tmp_path], since={tmp_path / "run0000"}, plots=False)
    assert "1 of 2 runs are new, 1 were there before." in made.notes


def test_the_default_folder_may_be_unwritable_and_out_may_not(tmp_path: Path) -> None:
    write(tmp_path, record())
    (tmp_path / "report.csv").mkdir()  # a folder in the file's place: also root cannot write it
    made = report([tmp_path])
    assert made.files == [] and "cannot be written" in made.notes[-1]
    with pytest.raises(FrugalError, match="cannot be written"):
        report([tmp_path], out=tmp_path / "run0000" / "record.json")


def test_folders_with_only_the_root_in_common_need_out() -> None:
    from frugal.report.verb import common_folder

    with pytest.raises(FrugalError, match="--out"):
        common_folder([Path("/usr"), Path("/tmp")])
    assert common_folder([Path("/usr/lib"), Path("/usr/bin")]) == Path("/usr")


def test_a_thousand_records(tmp_path: Path) -> None:
    draws = [(m, lr / 100, s) for m in ("simple_net", "lenet5") for lr in range(1, 101) for s in range(5)]
    write(tmp_path, *(record(model=m, lr=lr, seed=s, accuracy=0.5 + lr / 10, train=5 + lr) for m, lr, s in draws))
    made = report([tmp_path], page=False)
    assert made.statuses == {"completed": 1000} and len(made.rows) == 200
    assert {row["n_seeds"] for row in made.rows} == {5}
    assert len(plain(made.table).splitlines()) > 200


def test_train_time_is_what_making_the_artefact_took() -> None:
    made = record()
    made.time.ledger_s = {
        "startup": 1.0,
        "data_wait": 2.0,
        "train_step": 4.0,
        "compress": 8.0,
        "selection": 16.0,
        "lost": 32.0,
    }
    assert train_seconds(made) == 30.0
    made.time.ledger_s = {}
    assert train_seconds(made) is None


def test_latency_is_that_of_the_artefacts_own_backend() -> None:
    made = record()
    rows = {"eager": "dense", "compile": "dense", "onnxruntime": "converted"}
    made.latency = [Latency(name, 1, 2, status, 1.0, 1.0, 1.0) for name, status in rows.items()]  # type: ignore[arg-type]

    def backend() -> str:
        row = artefact_latency(made)
        return row.backend if row else ""

    assert backend() == "onnxruntime"
    made.techniques = {"deploy": {"backend": "compile"}}
    assert backend() == "compile"
    made.techniques, made.latency = {}, made.latency[:2]
    assert backend() == "eager"
    made.latency = []
    assert artefact_latency(made) is None


def test_main_prints_and_returns_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, record())
    assert main([str(tmp_path), "--no-plots", "--out", str(tmp_path / "to" / "here")]) == 0
    out = capsys.readouterr().out
    assert "1 run in 1 group: 1 completed" in out and "here/report.csv" in out and "pareto.png" not in out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "report: name at least one folder: frugal report logs"),
        (["logs", "--nope"], "--nope: unknown; did you mean --no-page?"),
        (["logs", "--metrics=loss"], "--metrics: unknown; did you mean --metric?"),
        (["logs", "--out"], "report: --out: expected one argument; see frugal report --help"),
    ],
)
def test_a_wrong_command_line_is_one_line(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FrugalError) as caught:
        main(words)
    assert str(caught.value) == line
    assert capsys.readouterr() == ("", "")


def test_flags_may_stand_between_folders_and_help_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a", record())
    write(tmp_path / "b", record(lr=0.5))
    assert main([str(tmp_path / "a"), "--no-plots", str(tmp_path / "b")]) == 0
    assert "2 runs in 2 groups" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0 and "--no-plots" in capsys.readouterr().out


def test_evaluations_have_a_table_of_their_own(tmp_path: Path) -> None:
    write(tmp_path, record(lr=0.1), record(lr=0.2), evaluation("simple_net-lr0.1-aaaa0000", accuracy=0.99))
    made = report([tmp_path])
    shown = plain(made.table)
    assert [column.title for column in made.layout.columns][:2] == ["lr", "seeds"]
    assert [column.title for column in made.evaluations.columns][:2] == ["run", "seeds"]
    ((name, *cells),) = made.evaluations.cells
    assert name == "simple_net-lr0.1-aaaa0000" and "0" not in cells
    assert "train" not in [column.title for column in made.evaluations.columns]
    assert shown.index("Evaluations") < shown.index("simple_net-lr0.1-aaaa0000")
    assert "## Evaluations" in made.markdown
    row = next(row for row in made.rows if "option.run" in row)
    assert (row["train_s"], row["set"], row["pareto"]) == (None, "A", False)
    assert "Not comparable" not in shown and "Best accuracy: lr=0." in shown


def test_evaluations_alone_make_a_report(tmp_path: Path) -> None:
    write(tmp_path, evaluation("one", file=100), evaluation("two", file=200))
    made = report([tmp_path])
    assert sorted(cells[0] for cells in made.evaluations.cells) == ["one", "two"]
    assert [file.name for file in made.files] == ["report.csv", "pareto.png", "report.md", "report.html"]
    assert "of it training" not in plain(summary(evaluation("x"), tmp_path))


def test_an_unfinished_run_is_its_name_status_error_and_folder(tmp_path: Path) -> None:
    many = {"choices": {f"group{i}": "option" * 9 for i in range(30)}}
    write(tmp_path, record(), record(status="failed", error="x" * 5000, name="broken", config=many))
    (line,) = report([tmp_path], plots=False).unfinished
    assert (
        line.startswith("failed broken: xxx") and line.endswith(f"… [{tmp_path / 'run0001'}]") and "group" not in line
    )
    assert len(line) < 340 + len(str(tmp_path))


def test_a_loss_that_was_not_finite_is_shown_and_said(tmp_path: Path) -> None:
    broken = record(name="wild", accuracy=0.1)
    broken.quality["test/loss"] = float("nan")
    broken.absent["quality.test/loss"] = "it was not finite (nan)"
    write(tmp_path, broken)
    made = report([tmp_path], plots=False)
    loss = [column.title for column in made.layout.columns].index("loss")
    assert made.layout.cells[0][loss] == "–" and "loss not finite in wild." in made.notes
    assert "test/loss – (not finite)" in plain(summary(broken, tmp_path))


def test_needs_neither_torch_nor_a_plotting_library_to_be_imported(tmp_path: Path) -> None:
    write(tmp_path, record())
    code = (
        "import json, sys; import frugal.report, frugal.console; free = sorted(sys.modules)\n"
        f"frugal.report.main([{str(tmp_path)!r}]); print(json.dumps([free, sorted(sys.modules)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    free, after = json.loads(done.stdout.splitlines()[-1])
    assert not {"torch", "lightning", "matplotlib", "rich", "scipy", "numpy"} & set(free)
    assert not {"torch", "lightning", "matplotlib.pyplot", "scipy"} & set(after) and "matplotlib" in after


def test_a_sweeps_folder_stands_for_its_runs(tmp_path: Path) -> None:
    write(tmp_path / "default", record(lr=0.1), record(lr=0.2), record(lr=0.3))
    jobs = tmp_path / "default" / "sweeps" / "2026-01-01_00-00-00" / "jobs"
    jobs.mkdir(parents=True)
    (jobs / "00000.txt").write_text("../../run0000\n")
    (jobs / "00001.txt").write_text(f"{tmp_path / 'default' / 'run0002'}\n")  # as earlier versions wrote them
    (jobs / "00002.txt").write_text("../../gone\n")
    made = report([jobs.parent], plots=False)
    assert [row["option.lr"] for row in made.rows] == ["0.1", "0.3"]
    assert made.files[0] == jobs.parent / "report.csv"
    assert report([tmp_path / "default"], plots=False).statuses == {"completed": 3}
    shutil.move(tmp_path / "default", tmp_path / "moved")
    moved = report([tmp_path / "moved" / "sweeps"], plots=False)
    assert moved.statuses == {"completed": 1}  # what is named relative to the sweep moved along


def test_a_run_that_says_running_is_running_or_was_cut_off(tmp_path: Path) -> None:
    write(tmp_path, record(), record(status="running", name="alive"), record(status="running", name="dead"))
    handle = os.open(tmp_path / "run0001", os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        made = report([tmp_path], plots=False)
    finally:
        os.close(handle)
    assert [line.split(" [")[0] for line in made.unfinished] == ["running alive", "cut off dead"]
    assert made.title == "3 runs in 1 group: 1 completed, 1 running, 1 cut off"
    assert made.statuses == {"completed": 1, "running": 2}  # as the records say


def test_debug_runs_are_shown_and_not_judged(tmp_path: Path) -> None:
    short = {"choices": {"model": "simple_net", "debug": "limited"}}
    usual = {"choices": {"model": "simple_net", "debug": "none"}}
    write(
        tmp_path,
        record(accuracy=0.9, config=usual),
        record(lr=0.2, accuracy=0.8, config=usual),
        record(lr=0.3, accuracy=0.99, train=0.1, config=short),
    )
    made = report([tmp_path], plots=False)
    debug = next(row for row in made.rows if row["option.debug"] == "limited")
    assert (debug["set"], debug["pareto"], debug["test/accuracy"]) == ("", False, 0.99)
    assert "Best accuracy: none, lr=0.1." not in made.notes and any("Best accuracy: lr=0.1" in n for n in made.notes)
    assert "Debug runs are shown, not judged: limited, lr=0.3." in made.notes
    assert "99.00" in plain(made.table)


def test_many_unlike_runs_have_a_table_a_set(tmp_path: Path) -> None:
    def unlike(data: str, **options: float) -> dict[str, object]:
        return {"choices": {"data": data, "model": "simple_net"}, **{k: {"x": v} for k, v in options.items()}}

    letters, digits = ("abcd", {"data_sha256": "a" * 64}), ("efgh", {"data_sha256": "b" * 64})
    made = [
        record(config=unlike(data, **{key: number}), fingerprint=fingerprint)
        for data, (keys, fingerprint) in (("letters", letters), ("digits", digits))
        for key in keys
        for number in (1, 2)
    ]
    made.append(record(config=unlike("lonely"), fingerprint={"data_sha256": "c" * 64}, name="lonely"))
    for run in made:
        run.run.command = " ".join(f"{key}.x=1" for key in "abcdefgh")
    write(tmp_path, *made)
    found = report([tmp_path], plots=False)
    assert [head for head, _ in found.by_set] == ["Set A", "Set B", "Alone in their sets"]
    titles = [[column.title for column in layout.columns][:5] for _, layout in found.by_set]
    assert sorted(titles[:2]) == [
        [f"{key}.x" for key in "abcd"] + ["seeds"],
        [f"{key}.x" for key in "efgh"] + ["seeds"],
    ]
    assert titles[2][:2] == ["set", "run"] and "lonely" in plain(found.table)


def test_of_two_equally_good_the_cheaper_is_the_best(tmp_path: Path) -> None:
    write(tmp_path, record(lr=0.1, train=20.0), record(lr=0.2, train=5.0))
    made = report([tmp_path], plots=False, page=False)
    assert [row["option.lr"] for row in made.rows] == ["0.2", "0.1"]
    assert any(note.startswith("Best accuracy: lr=0.2.") for note in made.notes)
