"""`servescope view` in a browser: filter, sort, tick, compare, and text that stays text."""

import threading

import pytest

from servescope.analysis import conclude
from servescope.report.browse import Browser
from servescope.serve import browse, listen
from servescope.store import RunWriter
from tests.support.kept import HOSTILE, keep, manifest
from tests.support.planted import request, steady
from tests.support.reported import simulated


@pytest.fixture
def view(tmp_path):
    """Where the runs under `tmp_path` are shown."""
    with listen.bound("127.0.0.1", 0) as listener:
        names = listen.names("127.0.0.1", None)
        server = browse.Server(listener, Browser(tmp_path).respond, names, None)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.shutdown()
        thread.join()


def names(page):
    return page.locator("tbody th > a").all_inner_texts()


def shows(page, *expected):
    """Wait until the list shows these runs, in this order."""
    shown = "[...document.querySelectorAll('tbody th > a')].map(link => link.textContent)"
    page.wait_for_function(f"names => String({shown}) === String(names)", arg=expected)


def test_the_list_is_drawn_filtered_while_one_types_and_sorted(page, view, tmp_path):
    for name, ttft_ms in (("middle", 50), ("slow", 90), ("fast", 10)):
        keep(tmp_path, name, steady(30, ttft_ms=ttft_ms), engine=f"engine {name}")
    page.goto(view)
    assert sorted(names(page)) == ["fast", "middle", "slow"]
    page.get_by_role("link", name="TTFT P50").click()
    shows(page, "fast", "middle", "slow")
    assert page.locator("th[aria-sort=ascending]").inner_text().startswith("TTFT P50")
    page.get_by_role("link", name="TTFT P50").click()
    shows(page, "slow", "middle", "fast")
    page.get_by_label("Search").fill("sl")
    shows(page, "slow")
    assert page.get_by_text("1 of 3 runs").is_visible()
    assert page.evaluate("location.search") == "?q=sl&sort=ttft_p50&down=1"
    page.get_by_label("Search").fill("")
    page.get_by_label("Engine").select_option("engine fast")
    shows(page, "fast")


def test_runs_are_compared_in_the_order_in_which_they_were_ticked(page, view, tmp_path):
    for name, ttft_ms in (("one", 50), ("two", 80), ("three", 20)):
        keep(tmp_path, name, steady(60, ttft_ms=ttft_ms), model=f"model {name}")
    page.goto(view)
    compare = page.get_by_role("button", name="Compare")
    assert compare.is_disabled()
    page.get_by_label("Compare two").check()
    page.get_by_label("Search").fill("one")
    shows(page, "one")
    page.get_by_label("Compare one").check()
    assert page.locator("#ticked").inner_text() == "Baseline: two, against it: one"
    page.get_by_role("button", name="Swap").click()
    assert page.locator("#ticked").inner_text() == "Baseline: one, against it: two"
    compare.click()
    page.wait_for_selector(".plot[data-drawn]")
    assert "two against one" in page.locator("h1").inner_text()
    assert page.locator("#changes-1 .plot .point").count() > 5
    page.get_by_role("link", name="Swap A and B").click()
    page.wait_for_selector(".plot[data-drawn]")
    assert "one against two" in page.locator("h1").inner_text()
    page.go_back()
    page.go_back()
    page.wait_for_selector("#filter")
    assert page.locator("#ticked").inner_text() == "Baseline: one, against it: two"


def test_a_run_that_goes_on_becomes_complete_before_ones_eyes(page, view, tmp_path):
    with RunWriter(tmp_path, manifest("a")) as writer:
        page.goto(view)
        page.locator(".state.running").wait_for()
        page.get_by_label("Compare a").check()
        page.get_by_role("link", name="Load").focus()
        keep(tmp_path, "later")
        page.get_by_role("link", name="later", exact=True).wait_for()
        writer.manifest.finished_utc = "2026-11-20T10:01:00+00:00"
        writer.write_manifest()
    page.locator(".state.running").wait_for(state="detached")
    assert page.get_by_label("Compare a").is_checked()
    assert page.evaluate("document.activeElement.textContent") == "Load"


def test_a_run_opens_its_report_and_leads_back(page, view, tmp_path):
    keep(tmp_path / "sweep #1?", "a")
    page.goto(view)
    page.get_by_role("link", name="a", exact=True).click()
    page.wait_for_selector(".plot[data-drawn]")
    assert "a" in page.title()
    page.get_by_role("link", name="All runs").click()
    assert names(page) == ["a"]


def test_hostile_text_stays_text_on_every_page(page, view, tmp_path):
    words = [request(i, chunks=0, outcome="failed:http_5xx", reason=HOSTILE) for i in range(40, 60)]
    for name in ("<b onclick=alert(3)>", "javascript:alert(4)"):
        keep(tmp_path, name, steady(40) + words, model=name + HOSTILE, engine=HOSTILE)
    broken = tmp_path / "<svg onload=alert(5)>"
    broken.mkdir()
    (broken / "manifest.json").write_text('{"name": "<svg onload=alert(6)>", "started_utc": 1}')
    page.goto(f"{view}/?q=%3Csvg+onload%3Dalert(7)%3E&sort=%22%3E%3Cb%3E")
    page.goto(view)
    assert page.locator("tbody tr").count() == 3
    assert page.locator("tbody b, tbody img, tbody svg, tbody script").count() == 0
    assert HOSTILE[:20] in page.locator("tbody").inner_text()
    for box in page.locator("input[name=run]").all():
        box.check()
    assert "<b onclick=alert(3)>" in page.locator("#ticked").inner_text()
    page.get_by_role("button", name="Compare").click()
    page.wait_for_selector("#method")
    assert page.locator("main b, main img, main section script:not([type])").count() == 0
    for name in ("<b onclick=alert(3)>", "javascript:alert(4)"):
        page.goto(view)
        page.get_by_role("link", name=name).click()
        page.wait_for_selector(".plot[data-drawn]")
        assert page.locator("main b, main img").count() == 0


def test_the_list_can_be_used_by_keyboard_and_without_scripts(browser, view, tmp_path):
    for name, ttft_ms in (("one", 50), ("two", 80)):
        keep(tmp_path, name, steady(40, ttft_ms=ttft_ms), model=f"model {name}")
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(view)
    page.get_by_label("Search").fill("one")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    assert names(page) == ["one"]
    page.goto(view)
    page.get_by_role("link", name="Run", exact=True).focus()
    with page.expect_navigation():
        page.keyboard.press("Enter")
    assert names(page) == ["one", "two"]
    for name in ("one", "two"):
        page.get_by_label(f"Compare {name}").focus()
        page.keyboard.press("Space")
    page.get_by_role("button", name="Compare").focus()
    with page.expect_navigation():
        page.keyboard.press("Enter")
    assert "two against one" in page.locator("h1").inner_text()
    context.close()


@pytest.mark.parametrize("width", [360, 1280])
def test_the_list_fits_its_window_and_scrolls_inside(page, view, tmp_path, width):
    keep(tmp_path, "a-name-that-is-much-longer-than-anything-should-be-" * 2, model="m" * 300)
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(view)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


RECTANGLES = """(() => {
  const text = document.querySelector("tbody td:nth-child(5)").firstChild;
  const range = document.createRange();
  range.setStart(text, text.data.indexOf("constant:9.947"));
  range.setEnd(text, range.startOffset + "constant:9.947".length);
  return range.getClientRects().length;
})()"""


def test_every_column_of_a_sweep_is_seen_at_1280_pixels_and_no_load_is_broken(page, view, tmp_path):
    loads = ["sync", "users:64", "constant:9.947,17.99,30.12"]
    conclude(simulated(tmp_path, load=loads, requests=300))
    page.goto(view)
    inside = page.locator(".scroll").evaluate("one => one.scrollWidth - one.clientWidth")
    assert inside <= 0
    assert page.evaluate(RECTANGLES) == 1
