"""The report: what it says, in what order, and that nothing it is given becomes more than text."""

import base64
import csv
import hashlib
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servescope.analysis import conclude
from servescope.report import html
from servescope.report.content import Column, Estimate, Plot, Section, Table
from servescope.report.curves import BINS, POINTS, cumulative, in_flight, round_step
from servescope.report.labels import quantity
from servescope.report.page import encoded
from servescope.report.sections import sections
from tests.support.planted import request, steady
from tests.support.reported import broken_off, hostile, planted, simulated

FEW = 1 << 20
"""Bytes that a page may have beyond Plotly's script."""


class Read(HTMLParser):
    """What a browser would make of a page: elements, attributes, text, headings, scripts."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.headings, self.text, self.scripts = [], [], [], []
        self._in = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "input", "br"):
            self._in.append(tag)
        if tag == "script":
            self.scripts.append((dict(attrs).get("type"), ""))

    def handle_endtag(self, tag):
        while self._in and self._in.pop() != tag:
            pass

    def handle_data(self, data):
        if self._in and self._in[-1] == "script":
            kind, before = self.scripts[-1]
            self.scripts[-1] = (kind, before + data)
        elif self._in and self._in[-1] != "style":
            self.text.append(data)
            if self._in[-1] in ("h1", "h2"):
                self.headings.append(data)

    @property
    def data(self):
        return [json.loads(text) for kind, text in self.scripts if kind == "application/json"]


def before_scripts(page):
    """A page without its two scripts, which are long to read and whose text nobody chose."""
    return page.partition("</main>")[0]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return conclude(simulated(tmp_path_factory.mktemp("runs")))


def named(evidence):
    return {section.name: section for section in sections(evidence)}


def plots(evidence):
    return [plot for section in sections(evidence) for plot in section.plots]


# --- what it says ---------------------------------------------------------------------------------


def test_doubts_come_first_then_the_answer_and_the_command_comes_last(sweep):
    names = [section.name for section in sections(sweep)]
    assert names[:2] == ["doubts", "answer"]
    assert names[-1] == "provenance"
    wanted = ["findings", "latency", "durations", "throughput", "timeline", "waterfall", "gaps"]
    assert [name for name in names if name in wanted] == wanted
    assert names.index("gaps") < names.index("figures")


def test_the_answer_is_two_sentences_with_the_figures_of_the_best_stage_within_the_slo(sweep):
    measured, came = named(sweep)["answer"].sentences
    assert "was simulated in 4 stages: of 240 requests" in measured
    within = [s for s in sweep.summary.stages if all(bound.met for bound in s.slo)]
    assert 0 < len(within) < 4
    assert f"at {within[-1].load}" in came
    assert "ttft_p99<400ms" in came


def test_a_stage_that_refused_requests_is_not_praised_without_saying_so(tmp_path):
    slow = [request(2 * i) for i in range(40)]
    failed = [request(i, chunks=0, outcome="failed:http_5xx") for i in range(80, 100)]
    stages = [("constant:50", None, slow), ("constant:100", None, [*steady(80), *failed])]
    run = planted(tmp_path, "refused", stages, trial={"slo": ["ttft_p99<200ms"]})
    _, came = named(conclude(run))["answer"].sentences
    assert "at constant:100 (20.0 % of it not answered), with" in came


def test_a_run_of_one_stage_says_that_it_missed_its_slo(tmp_path):
    run = planted(
        tmp_path, "slow", [("constant:100", None, steady(100))], trial={"slo": ["ttft_p99<20ms"]}
    )
    _, came = named(conclude(run))["answer"].sentences
    assert "TTFT P50 50.0 ms, P99 50.0 ms" in came
    assert "it misses the SLO (ttft_p99<20ms)" in came


def test_a_killed_run_is_never_shown_as_complete(tmp_path):
    evidence = conclude(broken_off(tmp_path))
    first = named(evidence)["doubts"].notices[0]
    assert (first.kind, first.tone) == ("incomplete", "bad")
    assert "it was killed" in first.text
    assert '<span class="mark">incomplete</span>' in html.of_run(evidence)


def test_a_run_without_a_single_answer_has_a_report_with_the_servers_words(tmp_path):
    dead = [
        request(i, chunks=0, outcome="failed:connect", reason="connection refused")
        for i in range(30)
    ]
    found = named(conclude(planted(tmp_path, "dead", [("users:4", None, dead)])))
    assert "Nothing was answered (30 x failed:connect: connection refused)" in str(found["answer"])
    (row,) = found["errors"].tables[0].rows
    assert row == ["failed:connect", "connection refused", "users:4", 30]
    assert "latency" not in found


# --- every section, every plot --------------------------------------------------------------------


def test_every_plot_can_be_downloaded_and_its_rows_have_its_columns(sweep, tmp_path):
    for plot in [*plots(sweep), *plots(conclude(hostile(tmp_path)))]:
        assert plot.csv_header, plot.name
        assert plot.csv_rows, plot.name
        assert {len(row) for row in plot.csv_rows} == {len(plot.csv_header)}, plot.name
        assert plot.caption.endswith("."), plot.name


def test_names_of_sections_and_plots_are_anchors_of_their_own(sweep):
    names = [section.name for section in sections(sweep)] + [plot.name for plot in plots(sweep)]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[a-z0-9-]+", name) for name in names)


def test_many_requests_are_few_points(tmp_path):
    run = simulated(tmp_path, "long", load=["poisson:20"], requests=2000, slo=[])
    evidence = conclude(run)
    for plot in plots(evidence):
        for trace in plot.traces:
            assert len(trace.get("x") or trace["y"]) <= max(POINTS, 2 * BINS), plot.name
    page = html.of_run(evidence)
    assert len(page) - len(encoded("", [Section(name="a", title="", plots=[flat()])])) < FEW


# --- the page -------------------------------------------------------------------------------------


def flat(**fields):
    traces = [{"type": "scatter", "x": [1, 2], "y": [3, 4], "name": "a"}]
    return Plot(**{"name": "p", "title": "t", "caption": "c.", "traces": traces, **fields})


def page(**fields):
    return encoded("title", [Section(name="s", title="S", **fields)]).decode()


def test_no_text_from_elsewhere_becomes_an_element_an_attribute_or_a_script(tmp_path):
    evidence = conclude(hostile(tmp_path))
    read = Read(before_scripts(html.of_run(evidence)))
    assert {kind for kind, _ in read.scripts} == {"application/json"}
    assert not [tag for tag, _ in read.elements if tag in ("img", "b", "iframe")]
    assert not [k for _, attrs in read.elements for k in attrs if k.startswith("on")]
    assert len(read.data) == len(plots(evidence))
    assert "<img src=x onerror=alert(1)>" in "".join(read.text)
    assert "\u202e" not in "".join(read.text)
    for data in read.data:
        assert not re.search(
            r"<(?!extra>|/extra>|br>)", json.dumps([data["traces"], data["layout"]])
        )


def test_scripts_run_by_their_hashes_alone_and_nothing_is_fetched(sweep):
    read = Read(html.of_run(sweep))
    (policy,) = [a["content"] for tag, a in read.elements if a.get("http-equiv")]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert "unsafe" not in rules["script-src"]
    for kind, text in read.scripts:
        if kind is None:
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in rules["script-src"]
    fetched = [a for _, a in read.elements if "src" in a or a.get("href", "#")[0] != "#"]
    assert not fetched


@settings(max_examples=30)
@given(st.text())
def test_any_text_in_a_plots_data_comes_back_as_it_was_and_ends_no_script(text):
    found = page(plots=[flat(csv_header=["a"], csv_rows=[[text]])])
    (data,) = Read(before_scripts(found)).data
    raw = found.partition('<script type="application/json">')[2].partition("</script>")[0]
    assert not set("<>&\u2028\u2029") & set(raw)
    _, (cell,) = csv.reader(io.StringIO(data["csv"], newline=""))
    assert cell in (text, "'" + text)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\tx", '=HYPERLINK("a")'])
def test_a_cell_of_the_csv_is_no_formula(text):
    found = page(plots=[flat(csv_header=[text], csv_rows=[[text], [-1.5]])])
    (data,) = Read(before_scripts(found)).data
    rows = list(csv.reader(io.StringIO(data["csv"])))
    assert rows == [["'" + text], ["'" + text], ["-1.5"]]


def test_a_cell_is_shown_for_people_and_sorted_by_its_number():
    table = Table(
        title="t",
        columns=[
            Column(title="a"),
            Column(title="b", form="seconds"),
            Column(title="c", form="change"),
        ],
        rows=[["x", Estimate(0.0123, 0.011, 0.014), -0.05], ["y", None, None]],
    )
    read = Read(page(tables=[table]))
    cells = [
        a.get("data-key") for tag, a in read.elements if tag in ("td", "th") and "data-key" in a
    ]
    assert cells == ["x", "0.0123", "-0.05", "y", "", ""]
    text = "".join(read.text)
    assert "12.3 ms" in text
    assert "11.0 to 14.0 ms" in text
    assert "-5.0 %" in text


def test_headings_tables_and_plots_are_named_for_those_who_cannot_see_them(sweep):
    read = Read(before_scripts(html.of_run(sweep)))
    assert read.headings[0].startswith("servescope: ")
    tables = [tag for tag, _ in read.elements if tag in ("table", "caption")]
    assert tables == ["table", "caption"] * (len(tables) // 2)
    shown = [a for tag, a in read.elements if a.get("role") == "img"]
    assert len(shown) == len(plots(sweep))
    assert all(len(a["aria-label"]) > 30 for a in shown)
    levels = [int(tag[1]) for tag, _ in read.elements if re.fullmatch(r"h\d", tag)]
    assert all(after - before <= 1 for before, after in pairwise(levels))


# --- curves ---------------------------------------------------------------------------------------


@given(
    st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=2000),
    st.floats(0.01, 0.99),
)
def test_a_cdf_says_of_each_value_how_many_lie_at_or_below(values, q):
    x, y = cumulative(np.array(values))
    assert len(x) <= POINTS
    assert (np.diff(x) >= 0).all()
    assert (x[-1], y[-1]) == (max(values), 1.0)
    at = float(x[np.searchsorted(y, q)])
    assert np.mean(np.array(values) <= at) >= q - 1e-9


def test_a_weighted_cdf_is_that_of_the_repeated_values():
    x, y = cumulative(np.array([1.0, 2.0, 3.0]), np.array([1.0, 1.0, 8.0]))
    assert x[np.searchsorted(y, 0.15)] == 2.0
    assert x[np.searchsorted(y, 0.25)] == 3.0


@given(st.lists(st.tuples(st.integers(0, 10**10), st.integers(0, 10**9)), max_size=30))
def test_time_in_flight_is_neither_lost_nor_made_up(spans):
    start = np.array([a for a, _ in spans], np.int64)
    end = np.array([a + b for a, b in spans], np.int64)
    edges = np.linspace(0, 11, 45)
    total = float((in_flight(start, end, edges) * np.diff(edges)).sum())
    assert total == pytest.approx(sum(b for _, b in spans) / 1e9, abs=1e-6)


@given(st.floats(1e-3, 1e6))
def test_bins_are_round_and_few(span):
    step = round_step(span)
    assert span / step <= BINS * (1 + 1e-6)
    assert f"{step:e}"[0] in "125"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("gpu_power_w_mean", 321.4, ("GPU power, mean", "321 W")),
        ("kv_use_ratio_max", 0.5, ("KV use, max", "50.0 %")),
        ("network_sent_bytes_per_s_max", 12_345_678, ("network sent, max", "12.3 MB/s")),
        ("energy_j_per_output_token", 0.25, ("energy per output token", "0.250 J")),
        ("energy_j_per_token", 0.25, ("energy per token", "0.250 J")),
        ("ttft_s_p99_steady", 0.2, ("TTFT, P99 steady", "200 ms")),
        ("preemptions", 3.0, ("preemptions", "3")),
        ("prompt_tokens", 51200.0, ("prompt tokens", "51,200")),
        ("prompt_tokens_per_s", 859.0, ("prompt tokens/s", "859/s")),
        ("note", "as said", ("note", "as said")),
        ("queue_s_mean", None, ("queue, mean", "-")),
    ],
)
def test_a_name_with_its_unit_becomes_words(name, value, said):
    assert quantity(name, value) == said


# --- the command ----------------------------------------------------------------------------------


def test_a_run_ends_with_its_report_and_without_where_none_is_wanted(command):
    words = ("run", "sim:vllm", "--load", "users:2", "--requests", 10, "--out", "runs")
    status, out, _ = command(*words, "--name", "a")
    assert status == 0
    assert out.endswith("kept in runs/a\nreport: runs/a/report.html\n")
    assert Path("runs/a/report.html").exists()
    assert command(*words, "--name", "b", "--no-report", "--quiet") == (0, "runs/b\n", "")
    assert not Path("runs/b/report.html").exists()


def test_the_report_is_made_again_from_the_directory_alone(command, tmp_path):
    path = planted(tmp_path, "kept", [("users:4", None, steady(40))]).path
    assert command("report", path)[0] == 0
    first = (path / "report.html").read_bytes()
    (path / "report.html").unlink()
    assert command("report", path, "--no-html")[0] == 0
    assert not (path / "report.html").exists()
    assert command("report", path, "--out", "elsewhere.html", "--json")[0] == 0
    assert (tmp_path / "elsewhere.html").read_bytes() == first
    status, _, told = command("report", path, path, "--out", "one.html")
    assert (status, "--out" in told) == (2, True)


def test_a_report_that_cannot_be_written_is_said_in_one_line(command, tmp_path):
    path = planted(tmp_path, "kept", [("users:4", None, steady(40))]).path
    (path / "report.html").mkdir()
    status, out, told = command("report", path)
    assert (status, told.count("\n")) == (0, 1)
    assert "report.html could not be written" in told
    assert "TTFT" in out
    status, _, told = command("report", path, "--out", tmp_path / "none" / "r.html")
    assert (status, told.count("\n"), "--out" in told) == (2, 1, True)


def test_plotlys_python_is_never_imported(tmp_path):
    path = planted(tmp_path, "kept", [("users:4", None, steady(40))]).path
    code = (
        "import sys; from pathlib import Path; from servescope.store import Run;"
        "from servescope.analysis import conclude; from servescope.report import html;"
        f"html.write(conclude(Run(Path({str(path)!r})))); assert 'plotly' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (path / "report.html").stat().st_mode & 0o777 == 0o600
