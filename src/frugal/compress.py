"""`frugal compress RUN`: a finished run's network made smaller or faster, by named techniques or up to a target.

With techniques it is one run that begins with that run's weights. With targets several such runs are tried and chosen
among on validation data, and the choice is confirmed once on the test set. Torch-free until the first of them begins.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from frugal import compose, settings
from frugal.errors import FrugalError, RunError, SettingsError, did_you_mean
from frugal.paths import ARTEFACTS, find_weights, shown
from frugal.record import Record

HELP = """usage: frugal compress RUN [KEY=VALUE ...]

By name: techniques that act after training, or in some more of it (trainer.max_epochs)
  frugal compress RUN quantization=static_int8
  frugal compress RUN pruning=gradual pruning.density=0.05 quantization=codebook coding=entropy trainer.max_epochs=5
  Everything else is as RUN had it, and can be changed like in frugal train; runs go to the experiment `compress`.

To a target: combinations are tried until the targets are met; one of them is enough
    target.bytes=50_000        largest artefact, everything counted
    target.latency_ms=0.2      longest median of a batch of one
    target.max_drop=0.002      largest loss of accuracy on validation data (of another metric: in its own units)
    budget.seconds=240         after which nothing new is tried
  frugal compress RUN target.bytes=10_000 target.max_drop=0.002

RUN is a finished run's folder.
"""
TARGETS = ("target.bytes", "target.latency_ms", "target.max_drop", "budget.seconds")
MAX_DROP = 0.005  # where only a size or a latency is asked for


def main(words: Sequence[str]) -> int:
    """The verb. Raises FrugalError for bad input; 1 where no try met the targets."""
    if not words or {"-h", "--help"} & set(words):
        print(HELP)
        return 0
    source, given, targets = _parse(words)
    base = _words_of(source, given)
    if not targets.wanted:
        _run([*base, *given])
        return 0
    return _search(source, base, given, targets)


@dataclass
class Targets:
    bytes: float | None = None
    latency_ms: float | None = None
    max_drop: float | None = None
    seconds: float = 600.0

    @property
    def wanted(self) -> bool:
        return any(value is not None for value in (self.bytes, self.latency_ms, self.max_drop))


def _parse(words: Sequence[str]) -> tuple[Path, list[str], Targets]:
    source, given, targets = None, [], Targets()
    for word in words:
        key, equals, value = word.partition("=")
        if word.startswith("-"):
            raise SettingsError(f"{word}: compress takes KEY=VALUE only, see frugal compress --help")
        if source is None and (not equals or Path(word).exists()):
            source = Path(word).expanduser()
        elif key in TARGETS:
            try:
                number = float(value)
            except ValueError:
                number = -1.0
            if number < 0 or (number == 0 and key != "target.max_drop"):
                raise SettingsError(f"{word}: needs a number above 0")
            setattr(targets, key.partition(".")[2], number)
        elif key.startswith(("target.", "budget.")):
            raise SettingsError(f"{word}: {did_you_mean(key, TARGETS)}")
        else:
            given.append(word)
    if source is None:
        raise SettingsError("compress: name a run: frugal compress RUN [KEY=VALUE ...]")
    return source, given, targets


def _words_of(source: Path, given: Sequence[str]) -> list[str]:
    """The run's own words without those given again, without its techniques, and its weights to begin with."""
    file = source / "overrides.yaml"
    if not file.is_file():
        raise RunError(f"{shown(source)}: no run's folder (it has no overrides.yaml); compress takes a finished run")
    if Record.read(source).status != "completed":
        raise RunError(f"{shown(source)}: this run has not completed; continue it with run.resume=true")
    named = {word.lstrip("+~").partition("=")[0] for word in given}
    left_out = {*named, "model.init_from", "trainer.max_epochs", "trainer.max_steps", "run.experiment", "run.resume"}
    kept = []
    for word in yaml.safe_load(file.read_text()) or []:
        key = word.lstrip("+~").partition("=")[0]
        if key not in left_out and key.split(".")[0] not in settings.TECHNIQUES and key.split(".")[0] != "paths":
            kept.append(word)
    weights = find_weights(source)
    if weights.suffix == ".onnx":  # holds no weights to train; the checkpoint does
        weights = source / "checkpoints" / "last.ckpt"
    words = [*kept, f"model.init_from={compose.quote(str(weights.resolve()))}", "run.experiment=compress"]
    if not {"trainer.max_epochs", "trainer.max_steps"} & named:
        words.append("trainer.max_epochs=0")
    return words


def _run(words: list[str]) -> tuple[Record, Path]:
    from frugal import job

    settings.add_working_directory()
    cfg, choices = compose.compose("train", words)
    return job.run_job(job.Job("train", cfg, choices, words))


# ---------------------------------------------------------------------------------------------------------- the search
@dataclass
class Candidate:
    """A way to compress: what it is expected to bring, from LeNet-300-100, LeNet-5 and a small CNN on MNIST."""

    words: tuple[str, ...]
    ratio: float  # dense bytes over its bytes
    epochs: float = 0.0  # of more training, as a share of the run's own
    faster: float = 1.0  # at a batch of one


def candidates() -> list[Candidate]:
    """From the mildest to the strongest."""
    found = [
        Candidate(("quantization=weight_int8", "coding=entropy"), 4.5),
        Candidate(("quantization=static_int8",), 3.9, faster=2.5),
        Candidate(("quantization=dynamic_int8",), 3.8, faster=2.0),
        Candidate(("quantization=weight_int4", "coding=entropy"), 8),
    ]
    for density, ratio in ((0.3, 12), (0.15, 22), (0.08, 38), (0.04, 70), (0.02, 120)):
        prune = ("pruning=gradual", f"pruning.density={density}", "pruning.begin=0%", "pruning.end=60%")
        shared = ("quantization=codebook", "quantization.begin=70%", "quantization.bits=4", "coding=entropy")
        found.append(Candidate((*prune, *shared), ratio, epochs=0.5))
    for weight, ratio in ((3e-6, 150), (1e-5, 300), (2e-5, 400)):
        rated = ("quantization=rate", f"quantization.bits_weight={weight}", "quantization.begin=0%", "coding=entropy")
        found.append(Candidate(rated, ratio, epochs=1.0))
    for density, faster in ((0.7, 1.4), (0.5, 2.0), (0.35, 2.5), (0.25, 3.0)):
        shrink = ("pruning=structured", f"pruning.density={density}", "pruning.at=0%")
        found.append(Candidate(shrink, 1 / density**2, epochs=0.5, faster=faster))
        found.append(
            Candidate((*shrink, "quantization=static_int8"), 3.9 / density**2, epochs=0.5, faster=2.5 * faster)
        )
    return found


@dataclass
class Try:
    candidate: Candidate
    seconds: float
    record: Record | None = None
    folder: Path | None = None
    error: str | None = None
    missed: dict[str, float] = field(default_factory=dict)  # target -> how many times too much


@dataclass
class Search:
    """Which candidate to try next: the mildest that is expected to reach size and latency, then by what was missed."""

    targets: Targets
    dense_bytes: float
    latency_ms: float | None
    left: list[Candidate]

    def order(self) -> None:
        ratio = self.dense_bytes / self.targets.bytes if self.targets.bytes else 1.0
        faster = self.latency_ms / self.targets.latency_ms if self.targets.latency_ms and self.latency_ms else 1.0
        enough = [c for c in self.left if c.ratio >= ratio and c.faster >= faster]
        rest = [c for c in self.left if c not in enough]
        # for a smaller file alone, what would change the network's speed comes last
        enough.sort(key=lambda c: (c.faster > 1.0 and self.targets.latency_ms is None, c.ratio))
        rest.sort(key=lambda c: -min(c.ratio / ratio, c.faster / faster))
        self.left = enough + rest


def _search(source: Path, base: list[str], given: list[str], targets: Targets) -> int:
    from frugal import console

    begun = time.monotonic()
    reference = Record.read(source)
    metric, higher = _judged_by(reference, source)
    if targets.max_drop is None:
        targets.max_drop = MAX_DROP
    before = reference.quality[metric]
    latency = min((row.p50_ms for row in reference.latency if row.batch == 1), default=None)
    search = Search(targets, float(reference.size.dense_fp32_bytes or 0), latency, candidates())
    search.order()
    own = float(reference.config.get("trainer", {}).get("max_epochs") or 1)
    per_epoch = (sum(reference.time.ledger_s.get(key, 0) for key in ("train_step", "data_wait", "callbacks"))) / own
    tries: list[Try] = []
    console.say(f"{shown(source)}: {metric} {before:.4g}, {_size(reference)}; to reach: {_wanted(targets)}")
    while search.left:
        candidate = search.left.pop(0)
        spent = time.monotonic() - begun
        epochs = max(1, round(candidate.epochs * own)) if candidate.epochs else 0
        expected = 3 + 1.5 * epochs * per_epoch
        if tries and spent + expected > targets.seconds:
            continue  # another may be quicker
        tried = _try(candidate, epochs, base, given, bool(targets.latency_ms))
        tries.append(tried)
        _judge(tried, targets, metric, higher, before)
        console.say(_line(tried, metric))
        if tried.record is not None and not tried.missed and (targets.bytes or targets.latency_ms):
            break
        # what lost too much: its stronger kin will lose more
        if "max_drop" in tried.missed:
            kind = candidate.words[0].partition("=")[2], candidate.words[-1]
            search.left = [
                c
                for c in search.left
                if (c.words[0].partition("=")[2], c.words[-1]) != kind or c.ratio < candidate.ratio
            ]
    return _conclude(tries, targets, metric, reference)


def _judged_by(reference: Record, source: Path) -> tuple[str, bool]:
    for metric, higher in (("val/accuracy", True), ("val/loss", False)):
        if reference.quality.get(metric) is not None:
            return metric, higher
    raise RunError(
        f"{shown(source)}: has no validation data, on which choices are made; train it with data.val_fraction=0.1"
    )


def _try(candidate: Candidate, epochs: int, base: list[str], given: list[str], timed: bool) -> Try:
    measured = ["measure=quick", "measure.batches=[1]", "measure.mfu=false"] if timed else ["measure=none"]
    named = {word.partition("=")[0] for word in given}
    words = [word for word in base if not word.startswith("trainer.max_epochs=")]
    words += [*candidate.words, f"trainer.max_epochs={epochs}", *measured, "logger=none", "run.test=false"]
    if epochs and "schedule" not in named:
        words.append("schedule=cosine")
    begun = time.monotonic()
    try:
        record, folder = _run([*words, *given])
    except FrugalError as error:  # a network that it does not suit, a package that is not there
        return Try(candidate, time.monotonic() - begun, error=str(error))
    return Try(candidate, time.monotonic() - begun, record, folder)


def _judge(tried: Try, targets: Targets, metric: str, higher: bool, before: float) -> None:
    record = tried.record
    if record is None:
        return
    value = record.quality.get(metric)
    drop = float("inf") if value is None else before - value if higher else value - before
    if targets.max_drop is not None and drop > targets.max_drop + 1e-9:
        tried.missed["max_drop"] = drop / max(targets.max_drop, 1e-4)
    if targets.bytes and (record.size.file_bytes or 0) > targets.bytes:
        tried.missed["bytes"] = (record.size.file_bytes or 0) / targets.bytes
    if targets.latency_ms:
        latency = _latency(record)
        if latency is None or latency > targets.latency_ms:
            tried.missed["latency_ms"] = (latency or float("inf")) / targets.latency_ms


def _latency(record: Record) -> float | None:
    from frugal.report.figures import artefact_latency

    row = artefact_latency(record)
    return None if row is None else row.p50_ms


def _conclude(tries: list[Try], targets: Targets, metric: str, reference: Record) -> int:
    from frugal import console
    from frugal.job import run_overrides

    done = [tried for tried in tries if tried.record is not None]
    if not done:
        raise RunError(f"compress: nothing could be tried ({tries[0].error if tries else 'no candidate'})")
    met = [tried for tried in done if not tried.missed]
    best = min(met, key=_bytes) if met else min(done, key=lambda tried: max(tried.missed.values()))
    assert best.folder is not None
    artefact = next(best.folder / name for name in ARTEFACTS if (best.folder / name).is_file())
    console.say("Met:" if met else "Not met; the nearest:")
    console.say(f"  {' '.join(best.candidate.words)}")
    level = "measure=standard" if targets.latency_ms else "measure=quick"
    tested = run_overrides([f"source={compose.quote(str(artefact.resolve()))}", level], "evaluate")
    name = metric.replace("val/", "test/")
    was, now = reference.quality.get(name), tested.quality.get(name)
    if was is not None and now is not None:
        console.say(f"On the test set, looked at once: {name} {now:.4g}, before {was:.4g}")
    for target, times in best.missed.items():
        console.say(f"Missed: target.{target}, {times:.2f} times what was asked for")
    console.say(f"Artefact: {shown(artefact)}")
    sys.stdout.flush()
    return 0 if met else 1


def _bytes(tried: Try) -> int:
    return (tried.record.size.file_bytes if tried.record else None) or 0


def _wanted(targets: Targets) -> str:
    parts = [f"at most {targets.bytes:,.0f} bytes"] if targets.bytes else []
    parts += [f"{targets.latency_ms:g} ms at a batch of one"] if targets.latency_ms else []
    return ", ".join([*parts, f"a drop of at most {targets.max_drop:g}, in {targets.seconds:.0f} s"])


def _size(record: Record) -> str:
    return f"{record.size.file_bytes or 0:,} bytes"


def _line(tried: Try, metric: str) -> str:
    words = " ".join(tried.candidate.words)
    if tried.record is None:
        return f"  – {words}: {tried.error}"
    figures: list[Any] = [_size(tried.record), f"{metric} {tried.record.quality.get(metric, float('nan')):.4g}"]
    latency = _latency(tried.record)
    figures += [f"{latency:.3g} ms"] if latency is not None else []
    missed = f", misses {' and '.join(tried.missed)}" if tried.missed else ", meets all"
    return f"  {words}: {', '.join(figures)} in {tried.seconds:.0f} s{missed}"
