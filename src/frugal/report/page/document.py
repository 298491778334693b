"""One HTML file: the data, the script, the style and the plotting library, under a policy that forbids the network.

The policy names each script by its hash, so that nothing that a record holds could run. Plotly's library is packed
(gzip, base64): 2 MB instead of 5; the browser unpacks it. The Python package plotly is never imported, only its
file is read.
"""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import importlib.util
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frugal.errors import RunError
from frugal.report.page.contents import contents, runs_of
from frugal.report.page.curves import curves

if TYPE_CHECKING:
    from frugal.report.verb import Report

LIBRARY = ("package_data", "plotly.min.js")


def to_html(made: Report, out: Path) -> str:
    """The page of a report that is written into `out`. Raises RunError where plotly is not installed."""
    library, library_hash = _library()
    here = files("frugal.report.page")
    script = (here / "page.js").read_text(encoding="utf-8")
    parts = {
        "policy": _policy(library_hash, _sha256(script)),
        "style": (here / "page.css").read_text(encoding="utf-8"),
        "script": script,
        "data": embedded(contents(made, out)),
        "curves": packed(json.dumps(curves(runs_of(made)), separators=(",", ":")).encode()),
        "library": library,
    }
    template = (here / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)  # in one pass: parts may hold braces


def embedded(plain: Any) -> str:
    """JSON for a script element. No character of it can end the element or a line of script."""
    text = json.dumps(plain, separators=(",", ":"), allow_nan=False)  # ASCII: U+2028 is an escape too
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def packed(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()


@functools.cache
def _library() -> tuple[str, str]:
    """Plotly's script, packed, and its hash."""
    found = importlib.util.find_spec("plotly")
    for place in (found.submodule_search_locations or []) if found else []:
        path = Path(place).joinpath(*LIBRARY)
        if path.is_file():
            content = path.read_bytes()
            return packed(content), _sha256(content.decode())
    raise RunError("report.html not written: plotly is not installed; pip install plotly")


def _sha256(script: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() + "'"


def _policy(*scripts: str) -> str:
    """Nothing may be fetched or sent. Plotly sets styles of its own and makes pictures for saving."""
    return (
        f"default-src 'none'; script-src {' '.join(scripts)}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
