"""A real browser for pages: a test fails on an error in its console or a request elsewhere.

Playwright's loop counts as running in this thread while the browser lives, so `asyncio.run` cannot
be called in tests of this folder: what needs it belongs in a process of its own.
"""

import os
import shutil
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    *("--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"),
    *("--no-first-run", "--disable-component-update", "--disable-default-apps", "--mute-audio"),
)


@pytest.fixture(scope="package")
def browser():
    """One Chromium for all tests of the folder, with a profile of its own."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no Chromium is installed (scripts/install-browser.sh)")
    sync_api = pytest.importorskip("playwright.sync_api")
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=[*QUIET, *sandbox])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser):
    """An empty tab: `page.goto(url)`. What it must not have done fails the test at its end."""
    with watched(browser) as (tab, faults):
        yield tab
    assert not faults, faults


@contextmanager
def watched(browser):
    """A tab with a profile of its own, and the list of what it did that a page must not do."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    faults = []

    def asked(dialog):
        faults.append(f"dialog: {dialog.message}")
        dialog.accept()

    context.on("console", lambda said: said.type == "error" and faults.append(said.text))
    context.on("weberror", lambda found: faults.append(str(found.error)))
    context.on("dialog", asked)
    context.on("request", lambda request: faults.extend(elsewhere(request)))
    yield context.new_page(), faults
    context.close()


def elsewhere(request):
    """A complaint, where a page asks for what is neither itself nor of its own loopback server."""
    if request.is_navigation_request() and request.frame.parent_frame is None:
        if not is_local(request.url):
            yield f"went to {request.url}"
        return
    scheme, origin, *_ = urlsplit(request.url)
    home = urlsplit(request.frame.url)
    same = scheme == home.scheme == "http" and origin == home.netloc and is_local(request.url)
    if scheme not in ("data", "blob") and not same:
        yield f"asked for {request.url}"


def is_local(url):
    """Whether it is a file, or on loopback."""
    found = urlsplit(url)
    return found.scheme in ("file", "about") or found.hostname in ("127.0.0.1", "localhost", "::1")
