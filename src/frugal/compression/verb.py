"""`frugal compress RUN`: a finished run's network made smaller or faster, by named techniques or up to a target.

With techniques it is one run that begins with that run's weights; with targets see `search`. Torch-free until a run
begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from frugal import compose, console, settings
from frugal.compression.plan import Targets
from frugal.errors import RunError, SettingsError, did_you_mean
from frugal.paths import find_weights, shown
from frugal.record import Record
from frugal.report import summary
from frugal.report.figures import is_share
from frugal.report.units import percent, significant, size

HELP = """usage: frugal compress RUN [KEY=VALUE ...]

By name: techniques that act after training, or in some more of it (trainer.max_epochs)
  frugal compress RUN quantization=static_int8
  frugal compress RUN pruning=gradual pruning.density=0.05 quantization=codebook coding=entropy trainer.max_epochs=5
  Everything else is as RUN had it, and can be changed like in frugal train; runs go to the experiment `compress`.

To a target, one or more of them: combinations are tried until one surely meets all
    target.bytes=50_000        largest artefact, everything counted
    target.latency_ms=0.2      longest median of a batch of one
    target.max_drop=0.002      largest loss of accuracy on validation data (of another metric: in its own units; 0.005)
    budget.seconds=240         after which nothing new is tried
  frugal compress RUN target.bytes=10_000 target.max_drop=0.002
  With techniques beside the targets only combinations with those are tried. Ctrl-C ends the search with what there is.

RUN is a finished run's folder. Of a network that is no run's: frugal.compress in Python, docs/compression.md.
"""
TARGETS = ("target.bytes", "target.latency_ms", "target.max_drop", "budget.seconds")


def main(words: Sequence[str]) -> int:
    """The verb. Raises FrugalError for bad input; 1 where no try met the targets."""
    if not words or {"-h", "--help"} & set(words):
        print(HELP)
        return 0
    source, given, targets = parse(words)
    base = words_of(source, given)
    if not targets.wanted:
        made, folder = run([*base, *given])
        console.say(summary(made, folder))
        console.say(beside(Record.read(source), made, source))
        return 0
    from frugal.compression.search import search

    return search(source, base, given, targets)


def parse(words: Sequence[str]) -> tuple[Path, list[str], Targets]:
    source, given, found = None, [], {}
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
            if not 0 <= number < float("inf") or (number == 0 and key != "target.max_drop"):
                raise SettingsError(f"{word}: needs a number above 0")
            found[key.partition(".")[2]] = number
        elif key.startswith(("target.", "budget.")):
            raise SettingsError(f"{word}: {did_you_mean(key, TARGETS)}")
        else:
            given.append(word)
    if source is None:
        raise SettingsError("compress: name a run: frugal compress RUN [KEY=VALUE ...]")
    targets = Targets(**found)
    if "seconds" in found and not targets.wanted:
        raise SettingsError("budget.seconds: is of a search; give it a target, as target.bytes=50_000")
    return source, given, targets


def words_of(source: Path, given: Sequence[str]) -> list[str]:
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
    words = [*kept, f"model.init_from={compose.quote(str(weights_of(source).resolve()))}", "run.experiment=compress"]
    if not {"trainer.max_epochs", "trainer.max_steps"} & named:
        words.append("trainer.max_epochs=0")
    return words


def weights_of(source: Path) -> Path:
    """What training can begin with."""
    weights = find_weights(source)
    by_onnx = str(Record.read(source).techniques.get("quantization", {}).get("backend", "")).startswith("onnxruntime")
    return source / "checkpoints" / "last.ckpt" if weights.suffix == ".onnx" or by_onnx else weights


def beside(before: Record, after: Record, source: Path) -> str:
    """What became of the quality and the bytes of the run that was compressed, in one line."""
    said, both = [], (before, after)
    for name in ("test/accuracy", "test/r2", "test/loss"):
        if name in before.quality and name in after.quality:
            one, other = (percent(r.quality[name]) if is_share(name) else significant(r.quality[name], 4) for r in both)
            said.append(f"{name} {one} to {other}")
            break
    if before.size.file_bytes and after.size.file_bytes:
        larger = after.size.file_bytes / before.size.file_bytes
        times = f"{larger:.3g} times larger" if larger > 1 else f"{1 / larger:.3g} times smaller"
        said.append(f"{size(before.size.file_bytes)} to {size(after.size.file_bytes)}, {times}")
    return f"Beside {shown(source)}: {', '.join(said) or 'no figure in common'}"


def run(words: Sequence[str]) -> tuple[Record, Path]:
    """One run of a list of words: its record and its folder."""
    from frugal import job

    settings.add_working_directory()
    cfg, choices = compose.compose("train", list(words))
    return job.run_job(job.Job("train", cfg, choices, list(words)))
