"""`frugal compress RUN target.bytes=...`: what `plan` proposes is run, judged on validation data, and said.

The test set is looked at once, of what was chosen.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frugal import compose, settings
from frugal.compression.plan import Move, Outcome, Plan, Targets, Way, best, ways
from frugal.compression.verb import run, weights_of
from frugal.errors import FrugalError, RunError, SettingsError
from frugal.paths import ARTEFACTS, shown
from frugal.record import Record

if TYPE_CHECKING:
    from frugal.compression.judge import Judge

MAX_DROP = 0.005  # where only a size or a latency is asked for
START_S = 3.0  # of a try around its training: data, files, validation
TRAINING = ("train_step", "data_wait", "callbacks")  # of a ledger


@dataclass
class Try:
    outcome: Outcome
    seconds: float
    record: Record | None = None
    file: Path | None = None
    error: str = ""


@dataclass
class Search:
    """One search, from its begin: what was tried, and what the next try may cost."""

    source: Path
    base: Sequence[str]
    given: Sequence[str]
    plan: Plan
    judge: Judge
    share: bool  # whether the drop is one of accuracy
    reference: Record
    begun: float
    tries: list[Try] = field(default_factory=list)

    @property
    def left(self) -> float:
        return self.plan.targets.seconds - (time.monotonic() - self.begun)

    def expected(self, move: Move) -> float:
        """Seconds, from the run's own training and from what the same way, or any, took so far."""
        own = [t for t in self.tries if t.outcome.move.way.name == move.way.name and t.outcome.move.effort]
        if own and move.effort:
            last = own[-1]
            return START_S + max(0.0, last.seconds - START_S) * move.effort / last.outcome.move.effort
        slower = [t.seconds / self._plain(t.outcome.move) for t in self.tries[-1:] if t.record is not None]
        return self._plain(move) * max([1.0, *slower])

    def _plain(self, move: Move) -> float:
        training = sum(self.reference.time.ledger_s.get(key, 0.0) for key in TRAINING)
        return START_S + move.effort * move.way.trains * training

    def length(self, move: Move) -> list[str]:
        """How long is trained, in epochs where the run had whole ones."""
        if any(word.startswith(("trainer.max_epochs=", "trainer.max_steps=")) for word in self.given):
            return []
        trainer = self.reference.config.get("trainer", {})
        epochs, steps = trainer.get("max_epochs"), self.reference.run.steps_executed
        if not move.effort:
            return ["trainer.max_epochs=0"]
        if epochs and trainer.get("max_steps", -1) == -1 and epochs * move.effort >= 1:
            return [f"trainer.max_epochs={round(epochs * move.effort)}"]
        if not steps:
            return ["trainer.max_epochs=1"]
        return ["trainer.max_epochs=null", f"trainer.max_steps={max(1, round(steps * move.effort))}"]

    def fitted(self, move: Move) -> Move | None:
        """The move, trained for less where the time left asks for it; None where there is too little."""
        expected = self.expected(move)
        if not self.tries or expected <= self.left:
            return move
        if not move.effort or expected <= START_S:
            return None
        effort = move.effort * (self.left - START_S) / (expected - START_S)
        return replace(move, effort=round(effort, 2)) if effort >= 0.5 else None

    def run(self, move: Move) -> Try:
        timed = self.plan.targets.latency_ms is not None
        measured = ["measure=quick", "measure.batches=[1]", "measure.mfu=false"] if timed else ["measure=none"]
        named = {word.partition("=")[0] for word in self.given}
        words = [word for word in self.base if word != "trainer.max_epochs=0"]
        words += [*self.length(move), *measured, "logger=none", "run.test=false"]
        if move.effort and not any(word.startswith("schedule=") for word in (*self.base, *self.given)):
            words.append("schedule=cosine")
        words += [word for word in move.words if word.partition("=")[0] not in named]
        begun = time.monotonic()
        try:
            record, folder = run([*words, *self.given])
            file = next(folder / name for name in ARTEFACTS if (folder / name).is_file())
            drop, error = self.judge.drop(file)
        except FrugalError as error_:  # a network that it does not suit, a package that is not there
            return Try(Outcome(move), time.monotonic() - begun, error=str(error_))
        outcome = Outcome(move, record.size.file_bytes, _latency(record) if timed else None, drop, error)
        return Try(outcome, time.monotonic() - begun, record, file)


def search(source: Path, base: list[str], given: list[str], targets: Targets) -> int:
    """0 where the targets are met."""
    from frugal import console
    from frugal.compression.judge import Judge

    begun = time.monotonic()
    reference = Record.read(source)
    if not reference.size.dense_fp32_bytes:
        raise RunError(f"{shown(source)}: its record has no size to compare with")
    if targets.max_drop is None:
        targets = replace(targets, max_drop=MAX_DROP)
    latency = min((row.p50_ms for row in reference.latency if row.batch == 1), default=None)
    plan = Plan(targets, reference.size.dense_fp32_bytes, latency, allowed(ways(_trained_on(reference)), given))
    judge = Judge([*base, *(word for word in given if _about_data(word))], weights_of(source))
    share = judge.task.endswith("classification")
    found = Search(source, base, given, plan, judge, share, reference, begun)
    console.say(f"{shown(source)}: {reference.size.file_bytes:,} bytes; to reach: {_wanted(targets, share)}")
    console.say(f"Judged on {judge.samples:,} validation samples, each beside what the run makes of it")
    stopped = ""
    try:
        while (proposed := plan.next()) is not None:
            move = found.fitted(proposed)
            if move is None:
                stopped = "the time is over"
                break
            console.say(
                f"Try {len(found.tries) + 1}: {' '.join(move.words)} {' '.join(found.length(move))}"
                f" (some {found.expected(move):.0f} s; {max(0.0, found.left):.0f} s left)"
            )
            tried = found.run(move)
            found.tries.append(tried)
            plan.outcomes.append(tried.outcome)
            console.say(f"  {_verdict(tried, targets, share)}, {tried.seconds:.0f} s")
    except KeyboardInterrupt:
        if not any(tried.record for tried in found.tries):
            raise
        stopped = "interrupted"
    return conclude(found, targets, stopped)


def allowed(known: Sequence[Way], given: Sequence[str]) -> list[Way]:
    """The ways that have the techniques which a command names. Raises SettingsError where none has."""
    named = dict(word.partition("=")[::2] for word in given if word.partition("=")[0] in settings.TECHNIQUES)
    kept = [way for way in known if all(way.groups().get(group, option) == option for group, option in named.items())]
    kept = [way for way in kept if not named or set(named) & set(way.groups()) or set(named) <= {"distillation"}]
    if not kept:
        words = " ".join(f"{group}={option}" for group, option in named.items())
        raise SettingsError(f"{words}: no combination that is searched has it; leave it out, or leave the targets out")
    return kept


def conclude(found: Search, targets: Targets, stopped: str) -> int:
    from frugal import console
    from frugal.job import run_overrides

    chosen = best(found.plan.outcomes, targets)
    if chosen is None:
        why = found.tries[0].error if found.tries else "the time is too short for a first try"
        raise RunError(f"compress: nothing could be tried ({why})")
    tried = next(t for t in found.tries if t.outcome is chosen)
    assert tried.file is not None
    missed = chosen.missed(targets)
    console.say(_table(found.tries, chosen, targets, found.share))
    head = "Not met; the nearest:" if missed else "Met:" if chosen.sure(targets) else "Met, but not surely:"
    why = stopped or ("nothing else is left to try" if missed or not chosen.sure(targets) else "")
    console.say(f"{head} {_verdict(tried, targets, found.share)}{f' ({why})' if why else ''}")
    for target, times in missed.items():
        console.say(f"Missed: target.{target}={getattr(targets, target):g}, {_missing(target, chosen, times, found)}")
    level = ["measure=standard"] if targets.latency_ms else ["measure=quick", "measure.mfu=false"]
    tested = run_overrides([f"source={compose.quote(str(tried.file.resolve()))}", *level, "logger=none"], "evaluate")
    name = "test/accuracy" if found.share else "test/loss"
    was, now = found.reference.quality.get(name), tested.quality.get(name)
    if now is not None:
        before = f", before {_quality(was, found.share)}" if was is not None else ""
        console.say(f"On the test set, looked at once: {name} {_quality(now, found.share)}{before}")
        lost = None if was is None else was - now if found.share else now - was
        if not missed and lost is not None and targets.max_drop is not None and lost > targets.max_drop + 1e-9:
            console.say(
                "There it loses more than was asked for: choose a smaller target.max_drop, or give the search more"
                " validation data (train with a larger data.val_fraction)"
            )
    console.say(f"Artefact: {shown(tried.file)}")
    sys.stdout.flush()
    return 1 if missed else 0


# --------------------------------------------------------------------------------------------------- what is said
def _table(tries: Sequence[Try], chosen: Outcome, targets: Targets, share: bool) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("", "tried", "training", "bytes", *(["ms"] if targets.latency_ms else []), "drop", ""):
        table.add_column(column, justify="right" if column in ("bytes", "ms", "drop", "training") else "left")
    for tried in tries:
        outcome = tried.outcome
        cells = ["★" if outcome is chosen else "", " ".join(outcome.move.words), f"{outcome.move.effort:g} ×"]
        if outcome.bytes is None:
            cells += ["", *([""] if targets.latency_ms else []), "", tried.error]
        else:
            cells += [f"{outcome.bytes:,}"]
            cells += [f"{outcome.latency_ms:.3g}" if outcome.latency_ms else "–"] if targets.latency_ms else []
            cells += [_drop(outcome, share), _judgement(outcome, targets)]
        table.add_row(*cells)
    return table


def _judgement(outcome: Outcome, targets: Targets) -> str:
    missed = outcome.missed(targets)
    if missed:
        return f"misses {' and '.join(missed)}"
    return "meets all" if outcome.sure(targets) else "meets all, but not surely"


def _verdict(tried: Try, targets: Targets, share: bool) -> str:
    outcome = tried.outcome
    if outcome.bytes is None:
        return f"cannot be done: {tried.error}"
    latency = f", {outcome.latency_ms:.3g} ms" if outcome.latency_ms else ""
    return f"{outcome.bytes:,} bytes{latency}, drop {_drop(outcome, share)}: {_judgement(outcome, targets)}"


def _missing(target: str, outcome: Outcome, times: float, found: Search) -> str:
    if target == "max_drop":
        return f"it loses {_drop(outcome, found.share)}"
    if target == "bytes":
        return f"it has {outcome.bytes:,}, {times:.2f} times as much"
    return f"it takes {outcome.latency_ms:.3g}" if outcome.latency_ms else "it was not measured"


def _drop(outcome: Outcome, share: bool) -> str:
    if share:
        return f"{100 * outcome.drop:.2f} ± {100 * outcome.error:.2f} points"
    return f"{outcome.drop:.4g} ± {outcome.error:.2g}"


def _quality(value: float, share: bool) -> str:
    return f"{100 * value:.2f} %" if share else f"{value:.4g}"


def _wanted(targets: Targets, share: bool) -> str:
    assert targets.max_drop is not None
    parts = [f"at most {targets.bytes:,.0f} bytes"] if targets.bytes else []
    parts += [f"{targets.latency_ms:g} ms at a batch of one"] if targets.latency_ms else []
    drop = f"{100 * targets.max_drop:g} points of accuracy" if share else f"{targets.max_drop:g} of the loss"
    return ", ".join([*parts, f"at most {drop} lost, in {targets.seconds:.0f} s"])


def _latency(record: Record) -> float | None:
    from frugal.report.figures import artefact_latency

    row = artefact_latency(record)
    return None if row is None else row.p50_ms


def _trained_on(record: Record) -> int | None:
    """Samples of the training split, of running text its tokens."""
    data = record.data
    if "samples" in data:
        return data["samples"].get("train")
    return data.get("splits", {}).get("train", {}).get("tokens")


def _about_data(word: str) -> bool:
    return word.lstrip("+~").partition("=")[0].split(".")[0] in ("data", "preprocess", "tokenizer", "paths", "seed")
