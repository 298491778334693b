"""Records in, comparison out: a table, CSV, Markdown and Pareto plots, all of them views of `record.json` files.

Imports neither torch nor lightning; matplotlib and rich only where something is drawn.
"""

from __future__ import annotations

from frugal.report.summary import summary
from frugal.report.verb import Report, build, main, report

__all__ = ["Report", "build", "main", "report", "summary"]
