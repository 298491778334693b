"""The report as one HTML page: `contents` makes plain data of the groups and runs, `curves` thins their metrics,
`document` puts both, the script and the plotting library into one file that needs no network.
"""

from __future__ import annotations

from frugal.report.page.document import to_html

__all__ = ["to_html"]
