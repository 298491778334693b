"""The page as a person uses it, in a headless browser: what it shows, sorts, filters, draws and never runs."""

from __future__ import annotations

import base64
import gzip
import importlib.util
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest
from made_up import evaluation, record, write

from frugal.record import Latency
from frugal.report import main, report
from frugal.report.page import curves as curve_files
from frugal.report.page import document
from frugal.report.units import duration, significant

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HAVE_PLAYWRIGHT = importlib.util.find_spec("playwright") is not None
in_browser = pytest.mark.skipif(
    not (BROWSER and HAVE_PLAYWRIGHT), reason="needs playwright (pip install playwright) and Chromium"
)
EVIL = '<img src=x onerror="window.hit=1"></script><script>window.hit=1</script>\u2028{{data}} <b>b</b> ${1}'
SWEEP = [(model, lr, seed) for model in ("simple_net", "lenet5") for lr in (0.01, 0.1) for seed in (0, 1)]
# lenet5 at 0.1 is the best, simple_net at 0.01 the fastest, simple_net at 0.1 is beaten in everything
ACCURACY = {("simple_net", 0.01): 0.90, ("simple_net", 0.1): 0.85, ("lenet5", 0.01): 0.95, ("lenet5", 0.1): 0.98}
TRAIN = {("simple_net", 0.01): 4.0, ("simple_net", 0.1): 20.0, ("lenet5", 0.01): 8.0, ("lenet5", 0.1): 16.0}


def sweep(folder: Path) -> Path:
    """Eight runs in four groups with curves and two backends, one failed, one evaluation, one with an evil name."""
    for model, lr, seed in SWEEP:
        made = record(
            model=model, lr=lr, seed=seed, accuracy=ACCURACY[model, lr] + 0.002 * seed, train=TRAIN[model, lr]
        )
        made.run.name = f"{model}-{lr}-{seed}"
        made.latency += [Latency("onnxruntime", 1, 2, "converted", 0.02, 0.03, 0.04)]
        made.absent["energy.train_j"] = "this machine has no counter"
        made.absent["time.to_target_s"] = "no target was set"
        if (model, lr, seed) == SWEEP[0]:
            made.time.to_target_s = 3.0
        write(folder, made)
        rows = [
            f"{step},{step // 5},{1 / (step + 1)},{0.5 + step / 100 if step % 5 == 4 else ''}" for step in range(20)
        ]
        (folder / f"run{SWEEP.index((model, lr, seed)):04d}" / "metrics.csv").write_text(
            "step,epoch,train/loss_step,val/accuracy\n" + "\n".join(rows) + "\n"
        )
    write(folder, record(model="lenet5", lr=0.1, seed=2, status="failed", error=f"boom {EVIL}", name=f"{EVIL}"))
    write(folder, evaluation("one", accuracy=0.97))
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = sweep(tmp_path_factory.mktemp("sweep"))
    report([folder], plots=False)
    return folder / "report.html"


class Opened:
    """A page, what it asked for and what went wrong on it."""

    def __init__(self, browser: Any, path: Path, width: int = 1280, script: str | None = None, **given: Any) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, reduced_motion="reduce", **given)
        self.page = self.context.new_page()
        self.asked: list[str] = []
        self.wrong: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", lambda line: self.wrong.append(line.text) if line.type == "error" else None)
        self.page.on("dialog", lambda dialog: (self.wrong.append("a dialog"), dialog.dismiss()))
        if script:
            self.page.add_init_script(script)
        self.page.goto(path.as_uri())

    def names(self) -> list[str]:
        return self.page.locator("#table tbody tr:not(.details) .name").all_inner_texts()

    def until(self, condition: str) -> None:
        """Wait for a condition, asked from outside: a function of playwright's own that polls in the page would need
        `eval`, which the page forbids."""
        for _ in range(600):
            if self.page.evaluate(condition):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"never came true: {condition}")

    def drawn(self, plot: str) -> list[dict[str, Any]]:
        """What Plotly drew, once it did."""
        self.page.locator(f"#{plot}").scroll_into_view_if_needed()
        self.page.locator(f"#{plot} .main-svg").first.wait_for()
        made: list[dict[str, Any]] = self.page.evaluate(
            "id => document.getElementById(id).data.map("
            "t => ({name: t.name, x: [...t.x], y: [...t.y], mode: t.mode, text: t.text}))",
            plot,
        )
        return made


@pytest.fixture(scope="module")
def shared(browser: Any, written: Path) -> Iterator[Opened]:
    made = Opened(browser, written)
    yield made
    made.context.close()


@pytest.fixture
def opened(shared: Opened) -> Iterator[Opened]:
    """The page of the sweep as it opens; the tests share one, since loading it takes longer than most of them."""
    shared.page.evaluate("frugalPage.anew()")
    yield shared
    assert shared.wrong == []


# ------------------------------------------------------------------------------------------------------- in a browser
@in_browser
def test_the_best_is_first_and_marked(opened: Opened) -> None:
    page = opened.page
    assert opened.names() == ["lenet5, lr=0.1", "one", "lenet5, lr=0.01", "simple_net, lr=0.01", "simple_net, lr=0.1"]
    assert page.locator("tr.best .name").all_inner_texts() == ["lenet5, lr=0.1"]
    assert page.locator(".tile.best").inner_text().split("\n")[:3] == [
        "Best accuracy",
        "98.10 % ± 1.27",
        "lenet5, lr=0.1",
    ]
    starred = page.locator("#table tr:has(.star) .name").all_inner_texts()
    assert starred == ["lenet5, lr=0.1", "lenet5, lr=0.01", "simple_net, lr=0.01"]
    page.click("#mode-runs")
    assert opened.names()[0] == "lenet5-0.1-1" and page.locator("tr.best .name").all_inner_texts() == ["lenet5-0.1-1"]


@in_browser
def test_sorts_with_what_is_missing_last(opened: Opened) -> None:
    page = opened.page
    page.click("#mode-runs")
    head = 'th[data-key="train_s"] button'
    page.click(head)
    assert (
        opened.names()[0].startswith("simple_net-0.01")
        and page.get_attribute('th[data-key="train_s"]', "aria-sort") == "ascending"
    )
    failed = [i for i, name in enumerate(opened.names()) if "<img" in name]
    assert min(failed) >= 8  # it trained for no known time, as the evaluation
    page.click(head)
    assert opened.names()[0].startswith("simple_net-0.1") and "<img" in "".join(opened.names()[8:])
    page.click(head)
    assert opened.names()[0] == "lenet5-0.1-1" and page.get_attribute('th[data-key="train_s"]', "aria-sort") is None
    page.click('th[data-key="test/accuracy"] button')  # more is better: the highest first
    assert opened.names()[0] == "lenet5-0.1-1"
    page.click('th[data-key="lr"] button')
    cells = page.locator("#table td.option:nth-child(3)").all_inner_texts()
    assert cells[:8] == ["0.01"] * 4 + ["0.1"] * 4


@in_browser
def test_filters_by_words_options_figures_and_status(opened: Opened) -> None:
    page = opened.page

    def kept(query: str) -> list[str]:
        page.fill("#query", query)
        page.wait_for_timeout(200)
        return opened.names()

    assert kept("lenet5 lr=0.01") == ["lenet5, lr=0.01"] and page.inner_text("#count") == "2 of 10 runs"
    assert kept("accuracy>94.9 train<10") == ["lenet5, lr=0.01"]
    assert kept("simple_net lr=1e-2") == ["simple_net, lr=0.01"]
    assert kept("lr=0.0") == [] and kept("model=lenet") == []  # no parts of values
    assert kept("lr<1e-1") == ["lenet5, lr=0.01", "simple_net, lr=0.01"]
    assert kept("accuracy>=9.82e1") == ["lenet5, lr=0.1"] and page.inner_text("#count") == "1 of 10 runs"
    assert kept("status=failed seed=2") == ["lenet5, lr=0.1"]
    assert kept("nothing of the kind") == [] and "No run passes" in page.inner_text("#table")
    assert len(kept("")) == 5
    page.select_option("#status", "failed")
    assert opened.names() == ["lenet5, lr=0.1"] and page.inner_text("#count") == "1 of 10 runs"


@in_browser
def test_a_group_shows_the_mean_of_the_runs_that_pass(browser: Any, tmp_path: Path) -> None:
    accuracies = {0.1: (0.90, 0.92, 0.97, 0.99), 0.15: (0.80,)}
    made = [record(lr=lr, seed=s, accuracy=a, train=8.0 + s) for lr, of in accuracies.items() for s, a in enumerate(of)]
    made[3].run.seed = made[3].config["seed"] = made[3].config["data"]["seed"] = 10
    write(tmp_path, *made)
    report([tmp_path], plots=False)
    opened = Opened(browser, tmp_path / "report.html")

    def row(query: str) -> list[str]:
        opened.page.fill("#query", query)
        opened.page.wait_for_timeout(200)
        assert opened.names() == ["lr=0.1"]
        cells = [
            f"#table tbody td >> nth={i}"
            for i in opened.page.evaluate(
                "[...document.querySelectorAll('#table th')].flatMap((th, i) => "
                "['seeds', 'test/accuracy', 'train_s'].includes(th.dataset.key) ? [i] : [])"
            )
        ]
        return [opened.page.inner_text(cell) for cell in cells]

    assert row("lr=0.1") == ["4", "94.50 ± 6.69", "9.50"]
    assert row("lr=0.1 accuracy<95") == ["2 of 4 runs", "91.00", "8.500"]
    assert row("lr=0.1 seed=1") == ["1 of 4 runs", "92.00", "9.00"]
    assert opened.wrong == []
    opened.context.close()


@in_browser
def test_groups_unfold_into_runs_and_runs_into_details(opened: Opened) -> None:
    page = opened.page
    page.click(".name >> nth=0")
    assert opened.names()[:3] == ["lenet5, lr=0.1", "lenet5-0.1-0", "lenet5-0.1-1"]
    page.click("text=lenet5-0.1-0")
    details = page.locator("tr.details").inner_text()
    assert "completed" in details and "metrics.csv" in details
    href = page.locator("tr.details a", has_text="record.json").get_attribute("href")
    assert href == "run0006/record.json"
    page.locator("#table tr.child:nth-child(2) a", has_text="record").wait_for()


@in_browser
def test_a_dash_says_why(opened: Opened) -> None:
    page = opened.page
    page.click("#mode-runs")
    column = page.locator("#table thead th").all_inner_texts().index("to target s")
    cells = {
        page.locator(f"#table tbody tr >> nth={row} >> td.first .name").inner_text(): page.locator(
            f"#table tbody tr >> nth={row} >> td >> nth={column}"
        )
        for row in (0, 5)
    }
    assert (
        cells["lenet5-0.1-1"].inner_text() == "–"
        and cells["lenet5-0.1-1"].get_attribute("title") == "no target was set"
    )


@in_browser
def test_the_trade_off_hovers_and_leads_to_the_row(opened: Opened) -> None:
    page = opened.page
    traces = opened.drawn("pareto-plot")
    front = next(trace for trace in traces if trace["mode"] == "lines")
    assert front["x"] == pytest.approx([4, 8, 16]) and front["y"] == pytest.approx([90.1, 95.1, 98.1])
    points = [trace for trace in traces if trace["mode"] == "markers"]
    assert sorted(x for trace in points for x in trace["x"]) == pytest.approx([4, 8, 16, 20])
    index = next(i for i, trace in enumerate(points) if trace["name"] == "model lenet5")
    place = points[index]["x"].index(pytest.approx(16))
    page.wait_for_timeout(300)
    point = page.locator("#pareto-plot .scatterlayer .trace:has(.point)").nth(index).locator(".point").nth(place)
    box = point.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.locator("#pareto-plot .hovertext").wait_for()
    said = page.locator("#pareto-plot .hovertext").text_content()
    assert "lenet5, lr=0.1" in said and "accuracy %: 98.10 ± 1.27" in said and "train s: 16.0" in said
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.locator("tr.flash").wait_for()
    assert page.locator("tr.flash .name").inner_text() == "lenet5, lr=0.1"
    page.select_option("#pareto-x", label="file kB")
    page.select_option("#pareto-y", label="loss")
    page.wait_for_timeout(100)
    assert {x for trace in opened.drawn("pareto-plot") for x in trace["x"]} == {1.0}
    assert page.locator("#pareto-plot .xtitle").text_content() == "file kB"
    low, high = page.evaluate("document.getElementById('pareto-plot').layout.yaxis.range")
    assert low < 0.3 < high  # of the points; how wide an interval is does not count
    page.check("#pareto-ylog")
    page.wait_for_timeout(100)
    assert page.evaluate("document.getElementById('pareto-plot').layout.yaxis.type") == "log"


@in_browser
def test_curves_of_all_or_of_the_ticked(opened: Opened) -> None:
    page = opened.page
    traces = opened.drawn("curves-plot")  # val/accuracy, the first asked for
    assert len(traces) == 8 and traces[0]["x"] == [5, 10, 15, 20] and traces[0]["y"] == pytest.approx([54, 59, 64, 69])
    page.select_option("#curves-x", "epoch")
    assert opened.drawn("curves-plot")[0]["x"] == [1, 2, 3, 4]
    page.select_option("#curves-y", label="train/loss_step")
    assert len(opened.drawn("curves-plot")[0]["x"]) == 20
    page.locator("#table tr.best input[type=checkbox]").check()
    assert page.inner_text("#chosen").startswith("3 ticked")
    opened.page.locator("#curves-plot").scroll_into_view_if_needed()
    opened.until("document.getElementById('curves-plot').data.length === 2")  # the third failed
    page.click("#do-clear")
    opened.until("document.getElementById('curves-plot').data.length === 8")


@in_browser
def test_the_ledger_stacks_and_backends_stand_side_by_side(opened: Opened) -> None:
    traces = {trace["name"]: trace for trace in opened.drawn("time-plot")}
    # made_up: start-up as long as training, three quarters of that steps; the best group trained for 16 s
    assert [traces[name]["x"][0] for name in ("startup", "train_step", "data_wait")] == pytest.approx([16, 12, 4])
    opened.page.select_option("#time-as", "share")
    assert {trace["name"]: trace["x"][0] for trace in opened.drawn("time-plot")}["startup"] == pytest.approx(50)
    timed = {trace["name"]: trace for trace in opened.drawn("latency-plot")}
    assert timed["eager"]["x"][0] == pytest.approx(0.05) and timed["onnxruntime"]["x"][0] == pytest.approx(0.02)
    assert "p90 0.0300" in timed["onnxruntime"]["text"][0] and "converted, 2 threads" in timed["onnxruntime"]["text"][0]
    opened.page.select_option("#latency-batch", "8")
    assert [trace["name"] for trace in opened.drawn("latency-plot")] == ["eager"]


@in_browser
def test_two_runs_are_compared(opened: Opened) -> None:
    page = opened.page
    page.click("#mode-runs")
    for name in ("lenet5-0.1-0", "simple_net-0.01-0"):
        page.locator("#table tr", has_text=name).locator("input").check()
    page.click("#do-compare")
    settings, figures = page.locator("#compare-tables table").nth(0), page.locator("#compare-tables table").nth(1)
    shown = [row.split("\t") for row in settings.locator("tbody tr").all_inner_texts()]
    assert ["model", "lenet5", "simple_net"] in shown and ["optim.lr", "0.1", "0.01"] in shown
    assert not any(row[0] in ("seed", "data.batch_size") for row in shown)
    train = figures.locator('tr[data-key="train_s"] td').all_inner_texts()
    assert train == ["train s", "16.0", "4.00", "0.250 ×"]
    assert "better" in (figures.locator('tr[data-key="train_s"] td').last.get_attribute("class") or "")
    assert "worse" in (figures.locator('tr[data-key="test/accuracy"] td').last.get_attribute("class") or "")
    page.click("#swap")
    assert figures.locator('tr[data-key="train_s"] td').last.inner_text() == "4.00 ×"


@in_browser
def test_light_and_dark(opened: Opened) -> None:
    page = opened.page

    def back() -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    opened.drawn("pareto-plot")
    assert page.get_attribute("html", "data-theme") == "light" and back() == "rgb(245, 246, 248)"
    page.emulate_media(color_scheme="dark")
    opened.until("document.getElementById('pareto-plot').layout.font.color === '#e4eaf1'")
    assert page.get_attribute("html", "data-theme") == "dark" and back() == "rgb(13, 17, 23)"
    page.click("#theme")
    opened.until("document.getElementById('pareto-plot').layout.font.color === '#1a2230'")
    assert back() == "rgb(245, 246, 248)" and page.evaluate("localStorage.getItem('frugal-theme')") == "light"
    page.emulate_media(color_scheme="light")


@in_browser
def test_names_with_html_stay_text_and_nothing_is_fetched(browser: Any, tmp_path: Path) -> None:
    write(
        tmp_path,
        record(model=EVIL, name=EVIL, accuracy=0.9),
        record(model="other", accuracy=0.8, train=5.0, name="javascript:alert(1)"),
        record(model="third", status="failed", error=EVIL),
    )
    evil = tmp_path / "a<img src=x onerror=alert(1)>:'\"&?#%"
    (tmp_path / "run0000").rename(evil)
    (evil / "metrics.csv").write_text(f'step,epoch,"{EVIL[:60].replace(chr(34), "")}"\n0,0,1.0\n1,0,2.0\n')
    report([tmp_path], plots=False)
    made = Opened(browser, tmp_path / "report.html")
    page = made.page
    assert "<img src=x onerror" in made.names()[0]
    for plot in ("pareto-plot", "curves-plot", "time-plot", "latency-plot"):
        made.drawn(plot)
        page.wait_for_timeout(50)
    assert "<img src=x" in page.locator("#time-plot").text_content()
    page.click("#mode-runs")
    for name in page.locator(".name").all():
        name.click()
    record_link = page.locator("tr.details a", has_text="record.json").first
    target = page.evaluate("a => a.href", record_link.element_handle())
    assert Path(unquote(urlparse(target).path)) == evil / "record.json"
    # nothing of a name became an element: all images and scripts are the page's own
    assert page.locator("main img, main script, main b, main i").count() == 0
    assert page.locator("script").count() == 5 and page.evaluate("window.hit") is None
    assert [url for url in made.asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert len([url for url in made.asked if url.startswith("file:")]) == 1
    assert made.wrong == []
    made.context.close()


@in_browser
def test_the_policy_forbids_scripts_and_the_network(opened: Opened) -> None:
    policy = opened.page.get_attribute("meta[http-equiv=Content-Security-Policy]", "content")
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in policy.split("style-src")[0]
    inject = "const s = document.createElement('script'); s.textContent = 'window.hit = 1'; document.body.append(s);"
    opened.page.evaluate(f"() => {{ {inject} }}")
    assert opened.page.evaluate("window.hit") is None
    assert opened.page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused')") == "refused"
    assert len(opened.wrong) >= 2 and all("Content Security Policy" in line for line in opened.wrong)
    opened.wrong.clear()


@in_browser
def test_a_phone_shows_it_without_scrolling_sideways(browser: Any, written: Path) -> None:
    made = Opened(browser, written, width=390)
    page = made.page
    for plot in ("pareto-plot", "curves-plot", "time-plot", "latency-plot"):
        made.drawn(plot)
    page.click(".name >> nth=0")
    page.click("tr.child .name >> nth=0")
    page.click("#columns summary")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    box = page.locator("#table tbody tr >> nth=0 >> td.num.figure >> nth=0").bounding_box()
    assert box["x"] + box["width"] <= 390  # the quality is seen without scrolling the table
    assert made.wrong == []
    made.context.close()


@in_browser
def test_an_old_browser_has_the_table_and_a_line(browser: Any, written: Path) -> None:
    made = Opened(browser, written, script="delete window.DecompressionStream")
    made.page.locator("#pareto-plot").scroll_into_view_if_needed()
    made.page.locator("#pareto-plot .message").wait_for()
    assert "cannot be drawn: this browser cannot unpack them" in made.page.inner_text("#pareto-plot")
    assert made.names()[0] == "lenet5, lr=0.1" and "optim.lr" in made.page.inner_text("#compare-tables")
    made.context.close()


@in_browser
def test_figures_read_as_in_the_table(opened: Opened) -> None:
    values = [0, 1, 9.999, 99.95, 0.0412, 1234, 123456, 1e-7, 2.5e13, 0.00012345, 999.6, 59.94, 3600, 4000, 86400]
    shown = opened.page.evaluate("v => v.map(x => [frugalPage.significant(x), frugalPage.duration(x)])", values)
    assert shown == [[significant(value), duration(value)] for value in values]


@in_browser
@pytest.mark.slow
def test_a_thousand_runs(browser: Any, tmp_path: Path) -> None:
    draws = [(m, lr / 100, s) for m in ("simple_net", "lenet5") for lr in range(1, 101) for s in range(5)]
    for index, (m, lr, s) in enumerate(draws):
        folder = tmp_path / f"run{index:04d}"
        folder.mkdir()
        made = record(model=m, lr=lr, seed=s, accuracy=0.5 + lr / 3 + s / 100, train=5 + 100 * lr)
        (folder / "record.json").write_text(json.dumps(made.to_dict()))
        rows = "".join(f"{step},0,{1 / (step + 1)}\n" for step in range(0, 500, 10))
        (folder / "metrics.csv").write_text("step,epoch,train/loss_step\n" + rows)
    report([tmp_path], plots=False)
    page_file = tmp_path / "report.html"
    assert page_file.stat().st_size < 4_500_000
    opened = Opened(browser, page_file)
    page = opened.page
    assert len(opened.names()) == 50 and page.inner_text("#pager").startswith("1–50 of 200")
    page.click("#mode-runs")
    page.click('[aria-label="Next page"]')
    assert page.inner_text("#pager").startswith("51–100 of 1000")
    page.click('th[data-key="train_s"] button')
    assert page.inner_text("#pager").startswith("1–50 of 1000")
    page.fill("#query", "lenet5 lr=0.37")
    page.wait_for_timeout(250)
    assert page.inner_text("#count") == "5 of 1000 runs"
    page.fill("#query", "")
    page.wait_for_timeout(250)
    assert sum(len(trace["x"]) for trace in opened.drawn("pareto-plot") if trace["mode"] == "markers") == 1000
    assert len(opened.drawn("curves-plot")) == 60 and "60 of 1000" in page.inner_text("#curves-hint")
    opened.context.close()


# ---------------------------------------------------------------------------------------------------- without a browser
def test_without_plotly_the_rest_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(document, "LIBRARY", ("package_data", "nothing.js"))
    document._library.cache_clear()
    write(tmp_path, record())
    assert main([str(tmp_path), "--no-plots"]) == 0
    out = capsys.readouterr().out
    assert "report.html not written: plotly is not installed; pip install plotly" in out
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["report.csv", "report.md"]
    document._library.cache_clear()


def test_no_page_is_a_flag(tmp_path: Path, capsys: Any) -> None:
    write(tmp_path, record())
    assert main([str(tmp_path), "--no-plots", "--no-page"]) == 0
    assert "report.html" not in capsys.readouterr().out and not (tmp_path / "report.html").exists()


def test_embedded_data_cannot_end_the_element() -> None:
    text = document.embedded({"name": EVIL})
    assert json.loads(text) == {"name": EVIL}
    assert text.isascii() and not set("<>&") & set(text)


def parts_of(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    html = path.read_text()
    data, packed = (re.search(rf'<script id="{name}"[^>]*>(.*?)</script>', html)[1] for name in ("data", "curves"))  # type: ignore[index]
    return json.loads(data), json.loads(gzip.decompress(base64.b64decode(packed)))


def test_links_are_relative_to_where_the_page_lies(tmp_path: Path) -> None:
    write(tmp_path / "logs", record())
    report([tmp_path / "logs"], out=tmp_path / "to" / "here", plots=False)
    data, _ = parts_of(tmp_path / "to" / "here" / "report.html")
    assert data["runs"][0]["href"] == "../../logs/run0000"


def test_curves_are_thin_and_lose_no_spike(tmp_path: Path) -> None:
    write(tmp_path, record())
    values = [1.0] * 5000
    values[1234], values[4321], values[7] = 50.0, -3.0, float("nan")
    lines = [
        f"{step},{step // 1000},{value!r},0.1,{0.9 if step % 1000 == 999 else ''}\n"
        for step, value in enumerate(values)
    ]
    head = "step,epoch,train/loss_step,ledger/startup,val/accuracy\n"
    (tmp_path / "run0000" / "metrics.csv").write_text(head + "".join(lines) + "broken\n5001,x,1\n5002")
    report([tmp_path], plots=False)
    _, curves = parts_of(tmp_path / "report.html")
    assert (
        curves["metrics"] == [["train/loss_step", "", 1.0], ["val/accuracy", "%", 0.01]] and curves["left_out"] is None
    )
    per_epoch, metrics = curves["runs"]["0"]
    steps, found = metrics["0"]
    assert per_epoch == 1000 and len(steps) <= 300 and steps[0] == 1 and steps[-1] == 5000
    assert found[steps.index(1235)] == 50.0 and found[steps.index(4322)] == -3.0
    assert metrics["1"] == [[1000, 2000, 3000, 4000, 5000], [0.9] * 5]


def test_a_gap_stays_a_gap(tmp_path: Path) -> None:
    write(tmp_path, record())
    (tmp_path / "run0000" / "metrics.csv").write_text("step,epoch,val/loss\n0,0,1.0\n1,1,nan\n2,2,inf\n")
    report([tmp_path], plots=False)
    assert parts_of(tmp_path / "report.html")[1]["runs"]["0"][1]["0"] == [[1, 2, 3], [1.0, None, None]]


def test_a_metrics_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    write(tmp_path, record())
    (tmp_path / "run0000" / "metrics.csv").write_text("step,epoch,val/loss\n0,-1," + "1" * 200_000 + "\n")
    report([tmp_path], plots=False)
    curves = parts_of(tmp_path / "report.html")[1]
    assert curves["runs"] == {} and curves["left_out"] == "1 metrics.csv cannot be read."


def test_more_metrics_than_a_page_holds_are_left_out_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, record(accuracy=0.9), record(accuracy=0.8, lr=0.5))
    for name in ("run0000", "run0001"):
        (tmp_path / name / "metrics.csv").write_text("step,epoch,val/loss\n0,0,1.0\n")
    monkeypatch.setattr(curve_files, "MOST_BYTES", 40)
    report([tmp_path], plots=False)
    _, curves = parts_of(tmp_path / "report.html")
    assert list(curves["runs"]) == ["0"] and curves["left_out"].startswith("1 runs have")


def test_the_page_holds_all_figures_settings_and_reasons(tmp_path: Path) -> None:
    one, two = record(model="a", accuracy=0.9), record(model="b", accuracy=0.8, lr=0.5)
    one.quality["val/f1"] = 0.5
    two.quality["test/loss"] = float("nan")
    two.absent["quality.test/loss"] = "it was not finite (nan)"
    write(tmp_path, one, two)
    report([tmp_path], plots=False)
    data, _ = parts_of(tmp_path / "report.html")
    keys = [figure["key"] for figure in data["figures"]]
    best, other = data["runs"]
    assert best["text"][keys.index("val/f1")] == "50.00" and best["figures"][keys.index("test/accuracy")] == 0.9
    loss = keys.index("test/loss")
    assert other["figures"][loss] is None and data["reasons"][other["why"][str(loss)]] == "it was not finite (nan)"
    differing = {
        key: (data["values"][a], data["values"][b])
        for key, a, b in zip(data["keys"], best["leaves"], other["leaves"], strict=True)
    }
    assert differing["model"] == ("a", "b") and differing["optim.lr"] == ("0.1", "0.5") and "seed" not in differing
    assert data["sets"] == {"A": {"metric": keys.index("test/accuracy"), "best": 0, "run": 0}}
