"""Pictures of a report's page for the docs: desktop, dark and phone, into docs/img/.

    frugal train -m model=simple_net,lenet_300_100,lenet5 optim.lr=0.005,0.02 seed=0,1,2 trainer.max_epochs=10 \
        trainer.threads=1 measure=standard
    python docs/screenshots.py logs/default/sweeps/*/report.html

Needs playwright, Pillow and a Chromium (`pip install playwright pillow`).
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

PICTURES = {  # name: width, height, scheme, the first and the last section that it shows (None: from the top)
    "report": (1280, 900, "light", None, "tradeoff"),
    "report_dark": (1280, 900, "dark", "curves-section", "compare"),
    "report_phone": (390, 844, "light", None, "runs"),
}
PLOTS = ("pareto-plot", "curves-plot", "time-plot", "latency-plot")


def picture(browser: Browser, page_file: Path, name: str) -> bytes:
    width, height, scheme, first, last = PICTURES[name]
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if scheme == "dark" else "light",
        reduced_motion="reduce",
        device_scale_factor=1.5 if width < 500 else 1,
    )
    page = context.new_page()
    page.goto(page_file.resolve().as_uri())
    for plot in PLOTS:  # each is drawn when it comes into sight
        page.locator(f"#{plot}").scroll_into_view_if_needed()
        page.locator(f"#{plot} .main-svg").first.wait_for()
    page.evaluate("window.scrollTo(0, 0)")
    page.wait_for_timeout(500)
    edge = "([id, edge]) => document.getElementById(id).getBoundingClientRect()[edge]"
    start = page.evaluate(edge, [first, "top"]) - 16 if first else 0
    end = page.evaluate(edge, [last, "bottom"]) + 16
    taken = page.screenshot(full_page=True, clip={"x": 0, "y": start, "width": width, "height": end - start})
    context.close()
    image = Image.open(io.BytesIO(taken)).convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def main() -> None:
    page_file = Path(sys.argv[1])
    out = Path(__file__).parent / "img"
    out.mkdir(exist_ok=True)
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name in PICTURES:
            taken = picture(browser, page_file, name)
            (out / f"{name}.png").write_bytes(taken)
            print(f"{out / name}.png: {len(taken):,} bytes")
        browser.close()


if __name__ == "__main__":
    main()
