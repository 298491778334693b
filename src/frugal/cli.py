"""`frugal VERB [overrides]`: verbs, Hydra's wiring, and errors in one line. Imports nothing heavy."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from frugal import __version__
from frugal.errors import FrugalError

COMPOSED = {  # verbs whose arguments are Hydra overrides
    "train": "train a model and leave a record of what it reached and cost",
    "evaluate": "test and measure a run, a checkpoint or an artefact again",
}
PLAIN = {  # verbs with ordinary arguments
    "predict": "go on from a prompt, or classify new text, images and tables, with what a run left",
    "compress": "make a finished run's network smaller or faster, by techniques or up to a target",
    "report": "compare runs: a table, CSV, Markdown and Pareto plots",
    "doctor": "what this machine and this installation can do",
}

HELP = f"""Frugal {__version__}: train on images and text with efficiency techniques chosen by name,
and get proof of what each choice cost and saved.

usage: frugal VERB [ARGUMENTS]

{chr(10).join(f"  {verb:<10} {text}" for verb, text in (COMPOSED | PLAIN).items())}

first steps:
  frugal train                                          handwritten digits, no download, a few seconds
  frugal train data=mnist model=lenet5 optim.lr=0.05    name data, model and settings
  frugal train -m model=simple_net,lenet5 seed=0,1,2    a sweep and its report
  frugal report logs                                    compare everything so far
  frugal train --help                                   every option and setting

shell completion:  eval "$(frugal -sc install=bash)"
"""


def main(argv: list[str] | None = None) -> None:
    """Entry point of the console script: always leaves through `sys.exit`."""
    # Before torch is imported: threads that wait for each other give their core up. Beside other load steps on several
    # threads are four to ten times as fast so (a busy loop alongside), on a quiet machine up to 14 % slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = list(sys.argv[1:] if argv is None else argv)
    set_up_logging()
    try:
        code = _dispatch(arguments)
    except FrugalError as error:
        code = _fail(str(error))
    except KeyboardInterrupt as interrupt:
        from frugal import interrupts

        said = [str(interrupt) or "interrupted", interrupts.requeue()]
        code = _fail("; ".join(text for text in said if text), 130)
    except BrokenPipeError:
        code = 141
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # `frugal report | head`: nothing more can be said
    _leave(code)


def set_up_logging() -> None:
    """Frugal's own lines plainly to stdout, everybody's warnings to stderr; a run adds its log file."""
    import logging

    logging.raiseExceptions = False  # `frugal report | head`: a closed pipe is no error of the run
    logging.captureWarnings(True)
    own = logging.StreamHandler(sys.stdout)
    own.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("frugal")
    log.setLevel(logging.DEBUG)
    own.setLevel(logging.INFO)
    log.addHandler(own)
    others = logging.StreamHandler(sys.stderr)
    others.setLevel(logging.WARNING)
    others.addFilter(lambda line: not (line.name.startswith("frugal") and line.levelno < logging.WARNING))
    others.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(others)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    verb, rest = arguments[0], arguments[1:]
    if verb == "--version":
        print(__version__)
        return 0
    if verb in ("-sc", "--shell-completion", "--shell_completion"):
        return _completion(rest)
    if verb in COMPOSED:
        from frugal import ranks

        if ranks.place().rank:  # torchrun and srun start all ranks, and the first of them composes for all
            return ranks.follow()
        try:
            return _composed(verb, rest)
        finally:
            ranks.dismiss()
    if verb == "report":
        from frugal.report import main as report

        return report(rest)
    if verb == "predict":
        from frugal.predict import main as predict

        return predict(rest)
    if verb == "compress":
        from frugal.compression import main as compress

        return compress(rest)
    if verb == "doctor":
        from frugal.doctor import main as doctor

        return doctor(rest)
    from frugal.settings import did_you_mean

    raise FrugalError(f"{verb}: {did_you_mean(verb, [*COMPOSED, *PLAIN])}")


# -------------------------------------------------------------------------------------------------------- Hydra verbs
def _composed(verb: str, words: list[str]) -> int:
    from frugal import compose, interrupts, job, manifest

    job.problem = job.finished = job.SweepFolder.path = None  # of an earlier command in this process

    manifest.command = [verb, *words]
    compose.prepare_hydra()
    words = _normalize(verb, words)
    words = compose.expand_resume(words)
    overrides = [w for w in words if not w.startswith("-")]
    sys.argv = [sys.argv[0], *words]
    try:
        with compose.one_line_errors(verb, overrides), interrupts.raising():
            _hydra_main(verb)
    except FrugalError:
        job.SweepFolder.discard()
        raise
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise FrugalError(f"{error.filename or verb}: {error.strerror or error}") from None
    sweep = _sweep_folder()
    return _end_of_sweep(sweep) if sweep else _end_of_run()


def _end_of_run() -> int:
    from frugal import job

    problem = job.problem
    if problem is None:
        _show_summary()
        return 0
    if isinstance(problem, FrugalError | KeyboardInterrupt):
        raise problem
    traceback.print_exception(problem)  # the model's own code broke, and its author wants to see where
    return _fail(job.one_line(problem), 1)


def _show_summary() -> None:
    from frugal import console, job
    from frugal.record import Record
    from frugal.report import summary

    if job.finished is not None:
        console.say(summary(Record.read(job.finished), job.finished))


def _hydra_main(verb: str) -> None:
    """Hydra's own main, so that all its flags work."""
    import hydra

    from frugal import settings
    from frugal.job import hydra_job

    def error(parser: argparse.ArgumentParser, message: str) -> NoReturn:
        raise FrugalError(f"{verb}: {message}; settings are given as KEY=VALUE, see frugal {verb} --help")

    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us instead of Hydra's own report
    argparse.ArgumentParser.error = error  # type: ignore[method-assign, assignment]  # one line, not a page of usage
    hydra.main(version_base="1.3", config_path=str(settings.config_folder()), config_name=verb)(hydra_job)()


# Hydra's flags that take a value.
VALUED = {"--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--cfg", "-c", "--info", "-i"}
VALUED |= {"--package", "-p"}
INFORMING = {"--help", "-h", "--cfg", "-c", "--hydra-help", "--info", "-i", "-sc"}  # flags that run nothing


def _normalize(verb: str, words: list[str]) -> list[str]:
    """Flags first, as Hydra's parser wants them; and `evaluate PATH`, which is no override, as a quoted key."""
    flags, rest = [], []
    waiting = iter(words)
    for word in waiting:
        if word.startswith(("--experimental-rerun", "--experimental_rerun")):
            raise FrugalError("--experimental-rerun: reads a pickle and is not allowed; use run.resume=RUN")
        if word.startswith("-"):
            value = next(waiting, None) if word in VALUED else None
            flags += [word] if value is None else [word, value]
        else:
            rest.append(word)
    if verb == "evaluate":
        rest = _with_source(rest, informing=bool(INFORMING & set(flags)))
    return [*flags, *rest]


def _with_source(words: list[str], informing: bool) -> list[str]:
    """The first word that is no override is what to evaluate."""
    from frugal.compose import quote

    if any(word.split("=")[0] == "source" for word in words):
        return words
    for index, word in enumerate(words):
        if not word.startswith(("+", "~")) and ("=" not in word or Path(word).exists()):
            source = f"source={quote(str(Path(word).expanduser().resolve()))}"
            return [*words[:index], source, *words[index + 1 :]]
    if not informing:
        raise FrugalError("evaluate: name what to evaluate: frugal evaluate RUN_OR_CHECKPOINT [overrides]")
    return [*words, "source=RUN_OR_CHECKPOINT"]


def _end_of_sweep(sweep: Path) -> int:
    """Report on the sweep's runs; 1 when one of them failed."""
    from frugal import console
    from frugal.job import SweepFolder, finished_folders
    from frugal.paths import shown
    from frugal.report import report
    from frugal.report.paired import baseline_of
    from frugal.report.verb import written

    folders = finished_folders(sweep)
    if not folders:
        return int(SweepFolder.failed)
    result = report(folders, out=sweep, baseline=baseline_of([sweep]))
    console.say(result.table)
    console.say(written(result.files))
    best = result.best
    if best is not None:
        console.say(f"Best: {best.label}; its first run: {shown(best.completed[0].folder)}")
    failed = SweepFolder.failed or any(result.statuses.get(status) for status in ("failed", "interrupted", "running"))
    return int(failed)


def _sweep_folder() -> Path | None:
    """The folder of the sweep that this command ran, once it has a job."""
    from frugal.job import SweepFolder

    folder = SweepFolder.path
    return folder if folder is not None and (folder / "jobs").is_dir() else None


# --------------------------------------------------------------------------------------------------------- completion
def _completion(words: list[str]) -> int:
    """Hydra's completion knows no verbs: they are completed here, and taken out of the line before Hydra sees it."""
    query = next((w for w in words if w.startswith("query=")), None)
    if query is not None:
        line = os.environ.get("COMP_LINE", "")
        point = int(os.environ.get("COMP_POINT", len(line)))
        head = line[:point].split(" ")
        if len(head) <= 2:
            typed = head[1] if len(head) == 2 else ""
            print("\n".join(verb for verb in (*COMPOSED, *PLAIN) if verb.startswith(typed)))
            return 0
        verb = head[1]
        if verb not in COMPOSED:
            return 0
        # Neither the verb nor what `evaluate` names is an override.
        kept = [head[0], *(word for word in head[2:-1] if "=" in word), head[-1]]
        os.environ["COMP_LINE"] = " ".join(kept)
        os.environ["COMP_POINT"] = str(len(" ".join(kept)))
    else:
        verb = "train"
    return _composed(verb, ["-sc", *words])


# ------------------------------------------------------------------------------------------------------------ leaving
def _fail(message: str, code: int = 2) -> int:
    sys.stdout.flush()
    print(f"frugal: {message}", file=sys.stderr)
    return code


def _leave(code: int) -> None:
    """Flush and leave at once: tearing down torch's interpreter takes up to a second and does nothing for a finished
    job."""
    import logging

    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BrokenPipeError):
            stream.flush()
    if "torch" in sys.modules and "pytest" not in sys.modules and not sys.flags.inspect:
        os._exit(code)
    sys.exit(code)
