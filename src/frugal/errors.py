"""What Frugal says when it cannot go on: each message is one line that names the key or file and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FrugalError(Exception):
    """Base of every error that is the input's fault. Printed as one line, without a traceback."""


class SettingsError(FrugalError):
    """A key, value, option or combination in the configuration that cannot be used."""


class RefusedError(SettingsError):
    """A combination without meaning. In a sweep it is recorded as `refused` and fails nothing."""


class DataError(FrugalError):
    """A data file that is missing, cannot be fetched, or is not what its checksum says."""


class RunError(FrugalError):
    """A run's folder, checkpoint or artefact that cannot be opened, written or continued."""


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """The nearest valid name, or all of them where none is near."""
    names = sorted(str(v) for v in valid)
    longer = [known for known in names if len(name) > 1 and known.startswith(name)]
    near = difflib.get_close_matches(name, longer or names, n=1, cutoff=0.0 if longer else 0.5)
    if near:
        return f"unknown; did you mean {near[0]}?"
    return f"unknown; valid are {', '.join(names)}" if names else "unknown; nothing can be set here"
