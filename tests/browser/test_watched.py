"""The watch over pages itself: a page that does nothing wrong, and three that do."""

import pytest

from tests.browser.conftest import watched

FAULTS = {
    "console.error('it went wrong')": "it went wrong",
    "throw new Error('it broke')": "it broke",
    "fetch('http://example.invalid/')": "asked for http://example.invalid/",
    "new Image().src = 'http://127.0.0.1:1/pixel'": "asked for http://127.0.0.1:1/pixel",
    "alert('hello')": "dialog: hello",
}


def test_a_page_that_does_nothing_wrong_passes(page, save):
    page.goto("file://" + save("page.html", "<!doctype html><title>fine</title>"))
    assert page.title() == "fine"


@pytest.mark.parametrize("script", FAULTS)
def test_what_a_page_must_not_do_is_seen(browser, save, script):
    path = save("page.html", f"<!doctype html><script>{script}</script>")
    with watched(browser) as (page, faults):
        page.goto(f"file://{path}")
    assert any(FAULTS[script] in fault for fault in faults), faults
