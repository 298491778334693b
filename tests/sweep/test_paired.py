"""`sweep=paired`: seeds outermost, the baseline first, and differences with their intervals."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from command import TINY, frugal
from frugal.errors import SettingsError
from frugal.report import build
from hydra_plugins.frugal_sweep.paired import in_turn

pytest_plugins = ("users_home",)


def jobs(*words: str, variants: tuple[str, ...] = ("",)) -> list[str]:
    parsed = OverridesParser.create().parse_overrides(list(words))
    return [" ".join(job) for job in in_turn(parsed, [variant.split() for variant in variants])]


def test_the_order_of_jobs() -> None:
    assert jobs("a=1", "seed=0,1", "b=1,2") == ["a=1 b=1 seed=0", "a=1 b=2 seed=0", "a=1 b=1 seed=1", "a=1 b=2 seed=1"]
    assert jobs("lr=1", "seed=3,4", variants=("", "optim=adam lr=2")) == [
        "lr=1 seed=3",
        "optim=adam lr=2 seed=3",  # the variant's own word, and not the command's
        "lr=1 seed=4",
        "optim=adam lr=2 seed=4",
    ]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["seed=1", "a=1,2"], "two seeds or more"),
        (["a=1,2"], "two seeds or more"),
        (["seed=1,2", "a=1"], "nothing to compare"),
        (["seed=1,2", "a=interval(0,1)"], "intervals are for a search"),
    ],
)
def test_what_cannot_be_compared(words: list[str], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        jobs(*words)


def test_a_paired_sweep(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frugal.report.verb.Report._plot", lambda self, path: None)
    words = ["train", "sweep=paired", *TINY, "seed=0,1", 'sweep.variants=["","model=dropout_net","optim.lr=0.0"]']
    outcome = frugal(*words)
    assert outcome.code == 0, outcome.err
    order = re.findall(r"^Running (\S+) \(job \d of 6\)", outcome.out, flags=re.MULTILINE)
    assert [name.endswith("seed1") or "seed1-" in name for name in order] == [False] * 3 + [True] * 3
    assert [("dropout_net" in name, "lr0" in name) for name in order] == [
        (False, False),
        (True, False),
        (False, True),
    ] * 2
    (sweep,) = (tmp_path / "logs" / "default" / "sweeps").iterdir()
    for text in (outcome.out, (sweep / "report.md").read_text()):
        assert "Differences from the baseline, paired by seed, with 95 % intervals" in text
        assert "within noise" in text or "worse" in text
    assert "paired with the baseline: accuracy" in (sweep / "report.html").read_text()

    made = build([sweep])  # the verb `report` finds the same
    rows = [row for row in made.paired.cells if row[0]]
    assert sorted(row[0] for row in rows) == ["lr=0", "model=dropout_net"]
    base = next(group for group in made.groups if group.options == {"model": "simple_net", "lr": "0.01"})
    other = next(group for group in made.groups if group.options.get("model") == "dropout_net")
    pairs = [
        100 * (b.record.quality["test/accuracy"] - a.record.quality["test/accuracy"])
        for a, b in zip(base.completed, other.completed, strict=True)
    ]
    (row,) = [row for row in rows if row[0] == "model=dropout_net"]
    assert row[1] == "accuracy %" and row[5] == "2"
    assert float(row[4].split(" ")[0].replace(",", "")) == pytest.approx(sum(pairs) / 2, rel=0.06)
    size = [row for row in made.paired.cells if row[1] == "file kB"]
    assert {row[6] for row in size} == {"the same", "lower, better"}


def test_the_same_variant_twice(home: Path, tmp_path: Path) -> None:
    outcome = frugal("train", "sweep=paired", *TINY, "seed=0,1", 'sweep.variants=["optim=adam","optim=adam"]')
    assert "two of them are the same" in outcome.error and not (tmp_path / "logs").exists()
