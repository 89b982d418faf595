"""The report in a browser: drawn, sorted, downloaded, dark, narrow, on paper, and only text."""

import csv
import io

import pytest

from servescope.analysis import conclude
from servescope.report import html
from tests.support.planted import request, steady
from tests.support.reported import broken_off, hostile, planted, simulated


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return written(simulated(tmp_path_factory.mktemp("runs")))


def written(run):
    """The report of a run, as a URL."""
    return html.write(conclude(run)).as_uri()


def draw_all(page):
    """Look at all there is to see, as a reader would."""
    for k in range(page.locator("figure").count()):
        figure = page.locator("figure").nth(k)
        if not figure.is_visible():
            name = figure.get_attribute("id")
            page.locator(f".choice input[value='{name}']").check()
        figure.scroll_into_view_if_needed()
        figure.locator(".plot[data-drawn] svg.main-svg").first.wait_for()


def column(page, table, k):
    rows = page.locator(f"table:has(caption:text-is('{table}')) tbody tr")
    return [rows.nth(i).locator("th, td").nth(k).inner_text() for i in range(rows.count())]


def test_every_plot_of_a_sweep_is_drawn_when_it_is_looked_at(page, sweep):
    page.goto(sweep)
    assert page.locator("figure").count() > 10
    draw_all(page)
    for k in range(page.locator("figure").count()):
        figure = page.locator("figure").nth(k)
        assert figure.locator(".plot svg g.trace, .plot svg .cartesianlayer path").count() > 2
    assert page.locator("#violins .violin").count() == 4
    assert page.locator("#cdf-ttft .legendtext").all_text_contents()[0] == "poisson:4"
    assert page.locator("#throughput-ttft").get_by_text("ttft_p99<400ms").count() == 1


def test_a_measured_run_with_errors_and_one_broken_off_are_drawn_too(page, tmp_path):
    failed = [request(i, chunks=0, outcome="failed:http_5xx", reason="busy") for i in range(40, 50)]
    page.goto(written(planted(tmp_path, "busy", [("users:4", None, [*steady(40), *failed])])))
    draw_all(page)
    assert page.locator("#errors").get_by_text("busy").is_visible()
    page.goto(written(broken_off(tmp_path)))
    draw_all(page)
    assert page.locator("h1 .mark").inner_text() == "incomplete"


def test_hostile_text_stays_text_in_tables_and_in_plots(page, tmp_path):
    page.goto(written(hostile(tmp_path)))
    draw_all(page)
    assert page.locator("img, iframe, svg a, main b").count() == 0
    assert page.evaluate("document.querySelectorAll('script').length") == (
        page.locator("figure").count() + 2
    )
    legend = page.locator("#cdf-ttft .legendtext").all_text_contents()
    assert legend[0].startswith("constant:<img src=x")
    assert page.locator("#errors td").first.inner_text().startswith("=1+1 <img src=x")
    assert page.locator(".fact").first.inner_text().startswith("<img src=x onerror=alert(1)>")
    assert page.locator("#provenance pre").first.inner_text().count("alert(2)") == 1


def test_a_table_is_sorted_by_click_and_by_keyboard(page, tmp_path):
    stages = [(f"users:{n}", None, steady(40, ttft_ms=t)) for n, t in ((4, 90), (9, 5), (16, 40))]
    page.goto(written(planted(tmp_path, "three", stages)))
    head = page.locator("table:has(caption:text-is('TTFT')) thead th").nth(3)
    assert head.inner_text().startswith("P50")
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert column(page, "TTFT", 0) == ["users:9", "users:16", "users:4"]
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert column(page, "TTFT", 0) == ["users:4", "users:16", "users:9"]
    first = page.locator("table:has(caption:text-is('TTFT')) thead th").first
    first.get_by_role("button").focus()
    page.keyboard.press("Space")
    assert first.get_attribute("aria-sort") == "ascending"
    assert head.get_attribute("aria-sort") is None
    assert column(page, "TTFT", 0) == ["users:4", "users:9", "users:16"]


def test_what_is_absent_comes_last_however_a_table_is_sorted(page, tmp_path):
    stages = [("users:4", None, steady(3)), ("users:8", None, steady(400))]
    page.goto(written(planted(tmp_path, "dash", stages)))
    page.evaluate("document.querySelector('tbody td.number').dataset.key = ''")
    head = page.locator("thead th").nth(1)
    for _ in range(2):
        head.get_by_role("button").click()
        assert column(page, "Stages", 0)[-1] == "users:4"


def test_the_data_of_a_plot_is_downloaded_as_csv(page, sweep):
    page.goto(sweep)
    with page.expect_download() as waiting:
        page.locator("#throughput-ttft button.csv").click()
    assert waiting.value.suggested_filename == "throughput-ttft.csv"
    rows = list(csv.DictReader(io.StringIO(waiting.value.path().read_text())))
    assert [row["stage"] for row in rows] == [f"poisson:{n}" for n in (4, 16, 24, 32)]
    assert all(0 < float(row["ttft_p50_s"]) <= float(row["ttft_p99_s"]) for row in rows)


def test_it_is_as_dark_as_the_reader_wants_it(page, sweep):
    def paper():
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    page.emulate_media(color_scheme="dark")
    page.goto(sweep)
    dark = paper()
    page.locator("#cdf-ttft").scroll_into_view_if_needed()
    page.locator("#cdf-ttft .plot[data-drawn=dark]").wait_for()
    page.get_by_role("button", name="Show in light colours").click()
    assert page.locator("#cdf-ttft .plot").get_attribute("data-drawn") == "light"
    assert paper() == "rgb(255, 255, 255)" != dark
    page.reload()
    assert paper() == dark


def test_nothing_is_wider_than_a_narrow_window(page, sweep, tmp_path):
    page.set_viewport_size({"width": 360, "height": 640})
    for url in (sweep, written(hostile(tmp_path))):
        page.goto(url)
        draw_all(page)
        assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_plots_follow_the_window(page, sweep):
    page.goto(sweep)
    page.locator("#cdf-ttft").scroll_into_view_if_needed()
    page.locator("#cdf-ttft .plot[data-drawn]").wait_for()
    before = page.locator("#cdf-ttft svg.main-svg").first.get_attribute("width")
    page.set_viewport_size({"width": 600, "height": 800})
    page.locator(f"#cdf-ttft svg.main-svg:not([width='{before}'])").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == 600


def test_on_paper_every_plot_and_the_manifest_is_there_in_light_colours(page, sweep):
    page.emulate_media(color_scheme="dark")
    page.goto(sweep)
    page.evaluate(
        """addEventListener("beforeprint", () => {
          const plots = [...document.querySelectorAll(".plot")];
          window.printed = plots.map((plot) => plot.dataset.drawn);
          window.folded = document.querySelectorAll("details:not([open])").length;
        })"""
    )
    assert page.pdf().startswith(b"%PDF")
    shown = page.evaluate("window.printed")
    assert shown == ["light"] * page.locator("figure").count()
    assert page.evaluate("window.folded") == 0
    page.locator("html[data-theme=dark]").wait_for()


def test_it_is_walked_by_keyboard_and_its_parts_have_names(page, sweep):
    page.goto(sweep)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the report"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    for role in ("banner", "navigation", "main"):
        assert page.get_by_role(role).count() == 1
    assert page.get_by_role("heading", level=1).count() == 1
    itl = page.get_by_role("radio", name="ITL").first
    page.get_by_role("radio", name="TTFT").first.focus()
    page.keyboard.press("ArrowRight")
    assert itl.is_checked()
    page.locator("#cdf-itl .plot[data-drawn]").wait_for()
    assert not page.locator("#cdf-ttft").is_visible()


def test_without_scripts_all_text_and_tables_are_there(browser, sweep):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(sweep)
    assert page.locator("#answer p").count() == 2
    assert page.locator("#figures table").first.is_visible()
    assert "need JavaScript" in page.locator("main").inner_text()
    context.close()
