"""`frugal doctor`: what this machine and this installation can do, each line tried out, each fault with its way out.

Exit code 1 only where the installation is broken; what is merely missing or slow is said and is no fault.
Imports torch and the rest inside the probes: a broken torch is what it must be able to report.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict

from frugal import console
from frugal.doctor import backends, hardware, installation, surroundings
from frugal.doctor.check import Check, one_line

Probe = Callable[[], Iterator[Check]]
PROBES: tuple[tuple[str, Probe], ...] = (
    ("installation", installation.installation),
    ("installation", installation.torchvision),
    ("installation", installation.extras),
    ("machine", hardware.machine),
    ("devices", hardware.devices),
    ("precision", hardware.precisions),
    ("backends", backends.backends),
    ("backends", backends.compiling),
    ("backends", backends.onnx_export),
    ("measuring", surroundings.measuring),
    ("folders", surroundings.folders),
    ("data", surroundings.mnist),
    ("loggers", surroundings.wandb),
)
SLOW = (backends.compiling, backends.onnx_export)
_MARKS = {"ok": "green", "warn": "yellow", "missing": "cyan", "broken": "bold red"}


def main(argv: list[str]) -> int:
    """Print the report; 0, or 1 where the installation is broken."""
    parser = argparse.ArgumentParser(
        prog="frugal doctor", description="What this machine and this installation can do, each line tried out."
    )
    parser.add_argument("--json", action="store_true", help="print the lines as JSON")
    parser.add_argument("--quick", action="store_true", help="leave out what takes seconds: compiling, ONNX export")
    arguments = parser.parse_args(argv)
    checks = examine(quick=arguments.quick, show_progress=not arguments.json)
    broken = any(check.status == "broken" for check in checks)
    if arguments.json:
        print(json.dumps({"ok": not broken, "checks": [asdict(check) for check in checks]}, indent=1))
    else:
        _print(checks)
    return int(broken)


def examine(quick: bool = False, show_progress: bool = False) -> list[Check]:
    """All checks. One probe that fails is reported as such and stops none of the others."""
    probes = [(section, probe) for section, probe in PROBES if not (quick and probe in SLOW)]
    checks: list[Check] = []
    if show_progress:
        with console.progress("examining", len(probes)) as bar:
            for section, probe in probes:
                bar.advance(0, f"examining: {section}")
                checks += _run(section, probe)
                bar.advance()
    else:
        for section, probe in probes:
            checks += _run(section, probe)
    return checks


def _run(section: str, probe: Callable[[], Iterator[Check]]) -> list[Check]:
    found: list[Check] = []
    try:
        found.extend(probe())
    except Exception as error:  # a probe must never take the report with it
        found.append(Check(section, probe.__name__, "warn", f"could not be tried: {one_line(error)}"))
    return found


def _print(checks: list[Check]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("", "", "found", "way out", title="frugal doctor", title_justify="left")
    section = ""
    for check in checks:
        if check.section != section:
            section = check.section
            table.add_section()
            table.add_row("", Text(section, style="bold"), "", "")
        mark = Text(check.status, style=_MARKS[check.status])
        table.add_row(mark, check.name, Text(check.found), Text(check.fix or ""))
    console.say(table)
    broken = [check.name for check in checks if check.status == "broken"]
    if broken:
        console.say(f"broken: {', '.join(broken)}")
    else:
        console.say("the installation works; what is missing or slow stands above")
