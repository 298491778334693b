"""Frugal: train on images and text with efficiency techniques chosen by name, and get proof of what each cost and
saved."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from frugal.record import Record

__version__ = "0.1.0"
__all__ = ["__version__", "run"]


def run(overrides: Sequence[str] = (), verb: str = "train") -> Record:
    """Do the job of `frugal train OVERRIDES` in this process and return its record.

    Raises `frugal.errors.FrugalError` for bad input; what breaks while training raises as it is, after the
    record was written with status `failed`.
    """
    from frugal.job import run_overrides

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="IProgress not found")  # in a notebook, of a bar that is not drawn
        return run_overrides(list(overrides), verb)
