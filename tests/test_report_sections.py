"""The parts of a report: which stages a plot joins, names and colours, what a table holds."""

import msgspec
import pytest

from servescope.analysis import conclude
from servescope.report.sections import sections
from tests.support.planted import request, steady, unsent
from tests.support.reported import planted, simulated


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return conclude(simulated(tmp_path_factory.mktemp("runs")))


def named(evidence):
    return {section.name: section for section in sections(evidence)}


def test_cold_and_warm_passes_stand_side_by_side(tmp_path):
    cold, warm = steady(60, ttft_ms=80), steady(60, ttft_ms=20)
    run = planted(
        tmp_path,
        "cached",
        [("users:4, cold cache", "cold", cold), ("users:4, warm cache", "warm", warm)],
    )
    rows = named(conclude(run))["cache"].tables[0].rows
    label, before, after, change = rows[0]
    assert (label, change) == ("TTFT P50", pytest.approx(-0.75))
    assert (before, after) == (pytest.approx(0.08), pytest.approx(0.02))


def test_each_of_several_targets_has_its_row(tmp_path):
    mixed = [msgspec.structs.replace(r, target=r.request % 2) for r in steady(40)]
    run = planted(tmp_path, "two", [("users:4", None, mixed)], targets=["http://a:1", "http://b:1"])
    (table,) = [t for t in named(conclude(run))["figures"].tables if t.title == "Targets"]
    assert [row[:4] for row in table.rows] == [
        ["http://a:1", "users:4", 20, 0],
        ["http://b:1", "users:4", 20, 0],
    ]


def test_stages_of_one_load_are_told_apart(tmp_path):
    twice = [("users:4", None, steady(40)), ("users:4", None, steady(40, ttft_ms=90))]
    found = named(conclude(planted(tmp_path, "twice", twice)))
    traces = found["latency"].plots[0].traces
    assert [trace["name"] for trace in traces] == ["users:4 (1)", "users:4 (2)"]
    assert max(traces[0]["x"]) == pytest.approx(0.05)
    assert max(traces[1]["x"]) == pytest.approx(0.09)


def test_what_the_engine_says_stands_on_the_time_axis_of_the_client(sweep):
    (timeline,) = named(sweep)["timeline"].plots
    series = {trace["name"]: trace for trace in timeline.traces}
    flying, running = series["in flight, client"], series["running, engine"]
    assert flying["yaxis"] == running["yaxis"]
    assert flying["yaxis"] != series["KV cache"]["yaxis"]
    assert max(running["y"]) <= max(flying["y"]) + 1
    assert running["line"]["shape"] == "hv"  # a reading holds until the next
    assert "shape" not in flying["line"]


def test_of_several_stages_the_gravest_doubt_comes_first_and_in_red(tmp_path):
    lost = [request(i, chunks=0, outcome="failed:http_5xx") for i in range(40, 60)]
    stages = [("users:1", None, steady(40)), ("users:2", None, [*steady(40), *lost])]
    (errors, few) = named(conclude(planted(tmp_path, "two", stages)))["doubts"].notices
    assert (errors.kind, errors.tone) == ("errors", "bad")
    assert (few.kind, few.tone) == ("too few", "warning")


def test_a_stage_stands_on_the_curve_of_its_kind_alone(tmp_path):
    run = simulated(tmp_path, load=["sync", "users:64", "poisson:4,16,24"])
    (plot, *_) = named(conclude(run))["throughput"].plots
    joined, alone = plot.traces[:2], plot.traces[2:]
    assert [trace["text"] for trace in joined] == [["poisson:4", "poisson:16", "poisson:24"]] * 2
    assert [trace["text"] for trace in alone] == [["sync"]] * 2 + [["users:64"]] * 2
    assert not any("lines" in trace["mode"] or trace["showlegend"] for trace in alone)
    assert plot.layout["yaxis"]["type"] == "log"


def test_the_passes_of_cold_and_warm_are_curves_of_their_own(tmp_path):
    run = simulated(tmp_path, load=["poisson:4,8"], repeat_cache=["cold", "warm"])
    (plot, *_) = named(conclude(run))["throughput"].plots
    assert [(trace["name"], len(trace["x"])) for trace in plot.traces] == [
        ("TTFT P50, cold", 2),
        ("TTFT P99, cold", 2),
        ("TTFT P50, warm", 2),
        ("TTFT P99, warm", 2),
    ]


@pytest.mark.parametrize(("stages", "named_ones"), [(12, 12), (50, 17)])
def test_every_stage_or_every_so_many_has_its_name_under_the_violins(tmp_path, stages, named_ones):
    loads = [(f"constant:{k + 1}", None, steady(30)) for k in range(stages)]
    (plot,) = named(conclude(planted(tmp_path, "many", loads)))["durations"].plots
    step = -(-stages // named_ones)
    assert plot.layout["xaxis"]["ticktext"] == [f"constant:{k + 1}" for k in range(0, stages, step)]


def test_many_stages_are_named_upright_at_their_lines(tmp_path):
    loads = [(f"constant:{k + 1}", None, steady(300)) for k in range(10)]
    (plot,) = named(conclude(planted(tmp_path, "many", loads)))["timeline"].plots
    upright = [one for one in plot.layout["annotations"] if one.get("textangle")]
    assert [one["text"] for one in upright] == [load for load, *_ in loads]


def test_amounts_stand_to_the_right_in_the_tables_of_resources(sweep):
    for table in named(sweep)["resources"].tables:
        assert {column.form for column in table.columns[1:5]} == {"number"}
        assert len({row[0] for row in table.rows}) == len(table.rows)


def test_what_was_sent_again_is_told_where_all_completed(tmp_path):
    again = [*steady(40), request(40, attempts=2)]
    found = named(conclude(planted(tmp_path, "again", [("constant:100", None, again)])))
    (said,) = found["errors"].sentences
    assert said.startswith("constant:100: 1 sent again")
    assert not found["errors"].tables


def test_failures_are_drawn_over_time_and_as_bars_of_their_own(tmp_path):
    failed = [request(i, chunks=0, outcome="failed:http_5xx", reason="busy") for i in range(40, 50)]
    gone = [unsent(i, "failed:connect") for i in range(50, 60)]
    run = planted(tmp_path, "busy", [("constant:100", None, [*steady(40), *failed, *gone])])
    found = named(conclude(run))
    (timeline,) = found["timeline"].plots
    for name in ("failed:http_5xx", "failed:connect"):
        (line,) = [trace for trace in timeline.traces if trace["name"] == name]
        assert max(line["y"]) > 0
    (waterfall,) = found["waterfall"].plots
    assert "all requests that were sent" in waterfall.caption
    bars = {trace["name"]: len(trace["x"]) for trace in waterfall.traces}
    assert (bars["tokens"], bars["not answered"]) == (40, 10)
