"""Makes the pictures of docs/report.md: parts of a real report, and the list of runs.

    .venv/bin/python scripts/report-pictures.py

The runs are simulated, in virtual time and with a fixed seed, so that the pictures change only when
the pages do (and with the date).
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from servescope.analysis import conclude
from servescope.conduct import conduct
from servescope.experiment import Trial
from servescope.report import html

IMAGES = Path(__file__).parent.parent / "docs" / "images"
PICTURES = (
    # name, colours, width, first and last element
    ("report", "light", 1000, "header", "#answer"),
    ("report-latency", "light", 1000, "#latency", "#cdf-ttft"),
    ("report-throughput", "light", 1000, "#throughput", "#throughput"),
    ("report-timeline", "dark", 1000, "#timeline", "#timeline"),
    ("report-violins", "light", 1000, "#durations", "#durations"),
    ("report-narrow", "dark", 390, "#latency", "#violins"),
)
RUNS = (
    # name, engine, load
    ("baseline", "sim:vllm", "poisson:4,8,16"),
    ("slower-step", "sim:vllm?step=10ms", "poisson:4,8,16"),
    ("short-queue", "sim:sglang?max_waiting=4&max_num_seqs=8", "constant:40"),
    ("users", "sim:llamacpp?step=30ms&max_num_seqs=4", "users:1,2,4,8"),
)
MARGIN_PX = 16


def main() -> None:
    """Make them all."""
    with tempfile.TemporaryDirectory() as out:
        page = html.write(conclude(conduct(sweep(out))))
        IMAGES.mkdir(exist_ok=True)
        with sync_playwright() as playwright:
            path = shutil.which("chromium") or shutil.which("google-chrome")
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
            for picture in PICTURES:
                take(browser, page.as_uri(), picture)
            for name, target, load in RUNS:
                trial = Trial(
                    target=[target], load=[load], requests=400, seed=1, out=out, name=name
                )
                conclude(conduct(trial))
            with_list(browser, out)
            browser.close()


def with_list(browser: Browser, out: str) -> None:
    """What `servescope view` shows of these runs."""
    command = [sys.executable, "-m", "servescope", "view", out, "--port", "0", "--quiet"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as view:
        url = view.stdout.readline().strip()
        take(browser, url, ("view", "light", 1280, "#filter", "#compare"))
        view.terminate()


def sweep(out: str) -> Trial:
    """From idle to beyond what the engine can take."""
    return Trial(
        target=["sim:vllm?kv_tokens=4096&step=12ms"],
        load=["poisson:4,8,12,16,20,24,28"],
        requests=500,
        slo=["ttft_p99<500ms"],
        seed=1,
        out=out,
        name="sweep",
    )


def take(browser: Browser, url: str, picture: tuple[str, str, int, str, str]) -> None:
    """One picture, from the top of an element to the bottom of another."""
    name, colours, width, first, last = picture
    path = IMAGES / f"{name}.png"
    tab = browser.new_page(viewport={"width": width, "height": 1400}, color_scheme=colours)
    tab.goto(url)
    for element in tab.query_selector_all(f"{first} figure:not(.unchosen), {last}"):
        element.scroll_into_view_if_needed()
    tab.wait_for_timeout(500)
    tab.evaluate("scrollTo(0, 0)")
    top, bottom = (tab.locator(selector).bounding_box() for selector in (first, last))
    y = max(0, top["y"] - MARGIN_PX)
    height = bottom["y"] + bottom["height"] + MARGIN_PX - y
    clip = {"x": 0, "y": y, "width": width, "height": height}
    tab.screenshot(path=path, clip=clip, full_page=True)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")
    tab.close()


if __name__ == "__main__":
    main()
