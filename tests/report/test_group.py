"""Which runs belong together, what the columns are called, and what may be compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_up import evaluation, record

from frugal.record import Record
from frugal.report.collect import Run
from frugal.report.comparable import cautions, mark_pareto, split_sets, verdicts
from frugal.report.figures import ACCURACY, TRAIN
from frugal.report.group import Group, group_runs, name_groups


def grouped(*records: Record) -> tuple[list[Group], list[str], list[str]]:
    runs = [Run(made, Path(f"logs/run{i}/record.json")) for i, made in enumerate(records)]
    groups = group_runs(runs)
    columns = name_groups(groups)
    notes = split_sets(groups)
    mark_pareto(groups)
    return groups, columns, notes


def test_seeds_are_one_group_and_what_differs_is_a_column() -> None:
    groups, columns, _ = grouped(*(record(seed=s, model=m) for m in ("simple_net", "lenet5") for s in (0, 1, 2)))
    assert columns == ["model"]  # the hidden sizes follow from it, the seeds do not count
    assert [(g.label, g.seeds) for g in groups] == [("simple_net", [0, 1, 2]), ("lenet5", [0, 1, 2])]


def test_a_key_has_its_short_name_and_is_shown_once() -> None:
    groups, columns, _ = grouped(record(lr=0.1), record(lr=0.01), record(lr=0.01, model="lenet5"))
    assert columns == ["model", "lr"]  # optim.lr, and module.lr that follows it
    assert groups[1].options == {"model": "simple_net", "lr": "0.01"}
    assert groups[1].label == "simple_net, lr=0.01"


def test_short_names_that_clash_grow_until_they_differ() -> None:
    a = record(config={"optim": {"lr": 1.0}, "teacher": {"lr": 2.0}})
    b = record(config={"optim": {"lr": 2.0}, "teacher": {"lr": 1.0}})
    assert grouped(a, b)[1] == ["optim.lr", "teacher.lr"]


def test_a_key_that_follows_from_an_option_is_shown_where_the_command_named_it() -> None:
    brought = [record(model="simple_net", lr=0.1), record(model="lenet5", lr=0.01)]
    assert grouped(*brought)[1] == ["model"]
    asked = [record(model=m, lr=lr, command=f"frugal train model={m} optim.lr={lr}") for m, lr in (("a", 1), ("b", 2))]
    assert grouped(*asked)[1] == ["model", "lr"]


def test_a_fixed_split_seed_does_not_split_and_a_studied_one_does() -> None:
    groups, _, _ = grouped(record(seed=0), record(seed=1))  # split_seed 0 in both, which the first one's seed equals
    assert len(groups) == 1
    other = record(seed=1, config={"data": {"seed": 1, "split_seed": 5}})
    fixed = record(seed=0, config={"data": {"seed": 0, "split_seed": 0}})
    groups, columns, _ = grouped(fixed, other)
    assert (len(groups), columns) == (2, ["split_seed"])


def test_places_and_loggers_do_not_split() -> None:
    a = record(
        config={"paths": {"data_dir": "/a/data"}, "dirs": {"data": "/a/data"}, "logger": {"x": 1}, "run": {"n": 1}}
    )
    b = record(
        config={"paths": {"data_dir": "/b/data"}, "dirs": {"data": "/b/data"}, "logger": {"x": 2}, "run": {"n": 2}}
    )
    b.config["choices"] = {**b.config["choices"], "logger": "wandb"}
    b.run.seed = b.config["seed"] = 1
    b.config["data"]["seed"] = 1
    assert len(grouped(a, b)[0]) == 1


def test_repeats_of_a_seed_are_no_new_evidence() -> None:
    groups, _, _ = grouped(record(seed=0, accuracy=0.8), record(seed=0, accuracy=0.9), record(seed=1, accuracy=0.95))
    found = groups[0].estimate(ACCURACY)
    assert found is not None and (found.n, found.mean) == (2, pytest.approx(0.9))  # of 0.85 and 0.95


def test_runs_without_a_seed_each_count() -> None:
    found = grouped(record(seed=None, accuracy=0.8), record(seed=None, accuracy=0.9))[0][0].estimate(ACCURACY)
    assert found is not None and found.n == 2


def test_runs_without_a_config_are_not_mixed() -> None:
    bare = [record(), record()]
    for made in bare:
        made.config = {}
    assert len(grouped(*bare)[0]) == 2


def test_a_failed_run_joins_its_group_and_counts_for_nothing() -> None:
    groups, _, _ = grouped(record(seed=0, accuracy=0.8), record(seed=1, status="failed", error="boom"))
    assert [g.statuses for g in groups] == [{"completed": 1, "failed": 1}]
    found = groups[0].estimate(ACCURACY)
    assert found is not None and found.n == 1


def test_other_threads_are_another_group_and_another_set() -> None:
    slow = {"threads": 1}
    groups, _, notes = grouped(
        record(seed=0, train=9), record(seed=1, train=11), record(seed=0, train=99, fingerprint=slow, accuracy=0.5)
    )
    assert [(g.set, len(g.runs)) for g in groups] == [("A", 2), ("B", 1)]
    assert notes == ["Not comparable, since their fingerprints differ in threads: A: threads 2; B: threads 1."]
    assert all(g.pareto for g in groups)  # each is the best of its own set
    train = groups[0].estimate(TRAIN)
    assert train is not None and train.mean == 10


def test_the_effective_batch_may_be_under_study() -> None:
    small = record(config={"data": {"batch_size": 32}}, fingerprint={"effective_batch": 32})
    large = record(config={"data": {"batch_size": 64}}, fingerprint={"effective_batch": 64}, accuracy=0.1, train=99)
    groups, columns, notes = grouped(small, large)
    assert (columns, notes, {g.set for g in groups}) == (["batch_size"], [], {"A"})
    assert [g.pareto for g in groups] == [True, False]


def test_an_effective_batch_that_no_key_explains_splits() -> None:
    groups, _, notes = grouped(record(lr=0.1), record(lr=0.2, fingerprint={"effective_batch": 128}))
    assert {g.set for g in groups} == {"A", "B"} and "effective_batch 128" in notes[0]


def test_other_data_is_another_task_even_where_it_is_chosen() -> None:
    digits = record(config={"choices": {"data": "digits"}}, fingerprint={"data_sha256": "a" * 64})
    mnist = record(config={"choices": {"data": "mnist"}}, fingerprint={"data_sha256": "b" * 64})
    groups, columns, notes = grouped(digits, mnist)
    assert columns == ["data"] and {g.set for g in groups} == {"A", "B"} and "data_sha256 aaaaaaaa;" in notes[0]


def test_pareto_of_three_costs_and_of_each() -> None:
    fast = record(lr=1.0, accuracy=0.8, train=1, file=900, latency=0.5)
    small = record(lr=2.0, accuracy=0.8, train=9, file=100, latency=0.5)
    good = record(lr=3.0, accuracy=0.9, train=9, file=900, latency=0.5)
    bad = record(lr=4.0, accuracy=0.8, train=9, file=900, latency=0.6)
    groups, _, _ = grouped(fast, small, good, bad)
    assert [g.pareto for g in groups] == [True, True, True, False]
    assert [g.fronts for g in groups] == [["time"], ["size"], ["time", "size", "latency"], []]


def test_loss_decides_where_there_is_no_accuracy() -> None:
    groups, _, _ = grouped(record(lr=1.0, accuracy=None, loss=0.1), record(lr=2.0, accuracy=None, loss=0.2))
    assert [g.pareto for g in groups] == [True, False]


def test_the_same_text_in_other_tokens_is_judged_by_bits_per_byte() -> None:
    def of(tokenizer: str, loss: float, bits: float, text: str = "t" * 64) -> Record:
        made = record(lr=1.0, accuracy=None, loss=loss, config={"choices": {"tokenizer": tokenizer}},
                      fingerprint={"data_sha256": tokenizer[0] * 64})  # fmt: skip
        made.quality["test/bits_per_byte"], made.data = bits, {"text_sha256": text}
        return made

    # fewer and larger tokens: a larger loss each, and a better model
    groups, columns, notes = grouped(of("characters", 1.5, 2.2), of("bpe", 4.5, 2.0))
    assert columns == ["tokenizer"] and {g.set for g in groups} == {"A"} and not notes
    assert {g.options["tokenizer"]: g.pareto for g in groups} == {"characters": False, "bpe": True}
    groups, _, notes = grouped(of("characters", 1.5, 2.2), of("bpe", 4.5, 2.0, text="u" * 64))
    assert {g.set for g in groups} == {"A", "B"} and "data_sha256" in notes[0]


def test_verdicts_pair_by_seed() -> None:
    a = [record(lr=1.0, seed=s, accuracy=v) for s, v in enumerate((0.90, 0.92, 0.94))]
    near = [record(lr=2.0, seed=s, accuracy=v) for s, v in enumerate((0.91, 0.91, 0.935))]
    far = [record(lr=3.0, seed=s, accuracy=v) for s, v in enumerate((0.80, 0.82, 0.84))]
    lone = record(lr=4.0, seed=0, accuracy=0.5)
    line = verdicts(grouped(*a, *near, *far, lone)[0])[0]
    assert line.startswith("Best accuracy: lr=1. Within noise of it, paired by seed: lr=2 (")
    assert "lr=3" not in line and "1 of 3 others share fewer than two seeds" in line


def test_unequal_seeds_and_changed_code_are_said() -> None:
    a, b = record(lr=1.0, seed=0), record(lr=2.0, seed=1)
    a.run.source_sha256, b.run.source_sha256 = "x", "y"
    lines = cautions(grouped(a, b)[0])
    assert len(lines) == 2 and lines[0].startswith("Seed sets differ") and "2 versions of the code" in lines[1]
    assert cautions(grouped(record(lr=1.0), record(lr=2.0))[0]) == []


def test_a_column_that_only_some_have_says_nothing() -> None:
    old = record(lr=0.1, config={"choices": {"model": "a"}, "trainer": {"epochs": 1}})
    new = record(
        lr=0.2,
        config={
            "choices": {"model": "a", "coding": None, "deploy": "none"},
            "callbacks": {},
            "trainer": {"epochs": 1, "new": 3},
        },
    )
    assert grouped(old, new)[1] == ["lr"]


def test_an_option_that_is_none_elsewhere_is_under_study() -> None:
    bare = record(config={"choices": {"pruning": None}, "pruning": None})
    pruned = record(config={"choices": {"pruning": "magnitude"}, "pruning": {"amount": 0.5}})
    assert grouped(bare, pruned)[1] == ["pruning"]
    added = record(config={"trainer": {"extra": 3}}, command="frugal train +trainer.extra=3")
    assert grouped(record(), added)[1] == ["extra"]


def test_runs_that_no_column_tells_apart_have_their_names() -> None:
    groups, columns, _ = grouped(record(name="first"), record(name="second", config={"trainer": {"new": 3}}))
    assert (columns, [g.label for g in groups]) == (["run"], ["first", "second"])


def test_evaluations_are_named_by_what_they_evaluated() -> None:
    groups, columns, notes = grouped(
        record(lr=0.1), record(lr=0.2), evaluation("one", accuracy=0.99, file=1), evaluation("two")
    )
    assert (columns, notes) == (["lr", "run"], [])
    assert [g.label for g in groups] == ["lr=0.1", "lr=0.2", "one", "two"]
    assert [g.set for g in groups] == ["A"] * 4, "that they have no effective batch does not split them off"
    assert [g.pareto for g in groups] == [True, True, False, False], "they are no rivals of what they evaluated"
    assert groups[2].estimate(TRAIN) is None


def auto(threads: int, model: str, configured: int | None = None, **given: Any) -> Record:
    return record(model=model, config={"trainer": {"threads": configured}}, fingerprint={"threads": threads}, **given)


def test_threads_that_follow_from_the_model_are_under_study() -> None:
    groups, columns, notes = grouped(auto(1, "simple_net"), auto(2, "lenet5"))
    assert (columns, notes, {g.set for g in groups}) == (["model"], [], {"A"})
    assert cautions(groups) == ["Threads were chosen by the step's size: 1 for simple_net; 2 for lenet5."]


def test_threads_that_follow_from_nothing_split() -> None:
    machines = grouped(auto(1, "simple_net"), auto(2, "simple_net"))[0]
    assert {g.set for g in machines} == {"A", "B"}
    set_by_hand = grouped(auto(1, "simple_net", configured=4), auto(2, "lenet5", configured=4))[0]
    assert {g.set for g in set_by_hand} == {"A", "B"} and cautions(set_by_hand) == []
