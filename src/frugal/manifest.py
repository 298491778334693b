"""Where a run comes from: code, uncommitted changes, packages, machine and command, with secrets struck out.
Torch-free."""

from __future__ import annotations

import functools
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

# A value that is given to what is named like a secret, in code, YAML, JSON, a shell or a command ...
_NAMED = (
    r"[\w.-]*(?:api[_-]?key|access[_-]?key|token(?![a-z])|secret|passw(?:or)?d|passphrase|credential|private[_-]?key)"
)
_ANNOTATED = r"(?:\s*:\s*[\w.\[\]| ]+?(?=\s*=))?"
SECRETS = (
    re.compile(
        rf"(?i)({_NAMED}[\w.-]*['\"]?\]?{_ANNOTATED}\s*[=:]\s*)(\"[^\"\n]+\"|'[^'\n]+'|[^\s'\",;()\[\]{{}}]{{4,}})"
    ),
    re.compile(r"(?i)(\bbearer\s+)([\w.~+/=-]{8,})"),
    re.compile(r"(://[^/\s:@'\"]*:)([^/\s@'\"]+)(?=@)"),  # a password in an address
    # ... and what looks like the keys that well-known services give out
    re.compile(r"()(\b(?:sk-|gh[oprsu]_|github_pat_|glpat-|hf_|xox[abprs]-|AKIA)[\w-]{8,})"),
    re.compile(r"(-----BEGIN [A-Z ]*PRIVATE KEY-----)([\s\S]*?)(?=-----END|$)"),
)
SECRET_FILES = (":!*.env", ":!.env*", ":!*.pem", ":!*.key", ":!*netrc", ":!*id_rsa*", ":!*secret*", ":!*credential*")


def redact(text: str) -> str:
    """Strike out what looks like a secret."""
    for pattern in SECRETS:
        text = pattern.sub(r"\1***", text)
    return text


def describe_origin() -> tuple[dict[str, Any], str | None]:
    """What code, packages and machine a run comes from; and the uncommitted changes as a patch, secrets struck out."""
    commit, dirty, patch = git_state()
    return {
        "written_at": now(),
        "command": redact(command_line()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": {"processor": processor_name(), "cores": os.cpu_count(), "memory_bytes": _memory_bytes()},
        "git": {"commit": commit, "dirty": dirty},
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "packages": packages(),
    }, patch


@functools.lru_cache(maxsize=1)
def git_state() -> tuple[str | None, bool | None, str | None]:
    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, timeout=10, check=True, errors="replace"
        )
        return done.stdout

    try:
        commit = git("rev-parse", "HEAD").strip()
        dirty = bool(git("status", "--porcelain", "--untracked-files=no").strip())
        patch = git("diff", "HEAD", "--", ".", *SECRET_FILES) if dirty else ""
    except (OSError, subprocess.SubprocessError):
        return None, None, None
    return commit, dirty, redact(patch) if 0 < len(patch) < 1_000_000 else None


_PACKAGES: dict[str, str] = {}


def packages() -> dict[str, str]:
    if not _PACKAGES:  # reading all metadata takes 50 ms; a sweep does it once
        _PACKAGES.update(
            sorted({d.metadata["Name"]: d.version for d in metadata.distributions() if d.metadata["Name"]}.items())
        )
    return dict(_PACKAGES)


def processor_name() -> str:
    try:
        match = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        match = None
    return match.group(1) if match else platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


# The words of `frugal ...` as they were typed; Hydra gets them without the verb.
command: list[str] = []


def command_line() -> str:
    """The command that made this run; for a run from Python, that program's."""
    return shlex.join(["frugal", *command] if command else [Path(sys.argv[0]).name, *sys.argv[1:]])


def now() -> str:
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="seconds")
