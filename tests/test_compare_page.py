"""The page of a comparison: what it says in words, and that nothing it is given breaks it."""

import io

from hypothesis import given
from hypothesis import strategies as st

from servescope.analysis.comparison import Comparison, Difference, Pair, Row, Side, SideDoubt
from servescope.report import compare, compare_page
from tests.support.kept import HOSTILE

A = Side(name="before", paths=["runs/before"], kind="measured", target="llama, vllm")
B = Side(name="after", paths=["runs/after"], kind="measured", target="llama, vllm")


def row(figure="ttft_p99", change=0.1, verdict="worse", **fields):
    label = f"TTFT {figure.rpartition('_')[2]}" if figure.startswith("ttft") else figure
    filled = {"form": "seconds", "a": 0.1, "b": 0.1 * (1 + change), "smallest_ratio": 0.03}
    filled |= {"low": change - 0.02, "high": change + 0.02, "change_ratio": change}
    return Row(figure=figure, label=label, verdict=verdict, **(filled | fields))


def pair(*rows, side=1, load="users:4", **fields):
    return Pair(
        side=side, load=load, requests=(100, 120), repeats=(1, 1), rows=list(rows), **fields
    )


def section(comparison, name):
    return {found.name: found for found in compare_page.sections(comparison)}.get(name)


def test_the_answer_names_what_changed_and_what_would_have_been_seen():
    same = row("itl_p50", 0.001, "no difference shown", smallest_ratio=0.04)
    found = Comparison(sides=[A, B], pairs=[pair(row(), row("ttft_p50", 0.3), same)])
    (sentence,) = section(found, "answer").sentences
    assert sentence == (
        "users:4: B is worse than A in TTFT p50 (+30.0 %) and 1 more; no difference is shown in "
        "the other figure, where a change of 4.0 % would have been seen."
    )


def test_shares_change_by_points_and_open_intervals_say_so():
    share = row("error_ratio", 0.02, form="percent", a=0.0, b=0.02, low=None)
    found = Comparison(sides=[A, B], pairs=[pair(share)])
    (table,) = section(found, "changes").tables
    shown = dict(zip([column.title for column in table.columns], table.rows[0], strict=True))
    words = [shown[title].words for title in ("A", "B", "Change", "95 % interval")]
    assert words == ["0 %", "2.00 %", "+2.0 points", "below +4.0 points"]
    assert shown["Change"].value == 0.02  # what its row is sorted by
    assert section(found, "changes").plots == []


def test_doubts_and_what_is_incomplete_come_before_the_answer():
    side = Side(
        name="after",
        paths=["x"],
        kind="simulated",
        incomplete=["after: SIGINT"],
        doubts=[SideDoubt(load="users:4", kind="too_few", message="40 were answered")],
        missing=["users:8"],
        differs=[Difference(what="seed", a="1", b="2")],
    )
    found = Comparison(sides=[A, side], pairs=[pair(row(), notes=["other lengths"])])
    names = [each.name for each in compare_page.sections(found)]
    assert names.index("doubts") < names.index("answer")
    said = "\n".join(notice.text for notice in section(found, "doubts").notices)
    for words in ("after: SIGINT", "40 were answered", "users:8", "other lengths"):
        assert words in said
    assert section(found, "sides").tables[0].rows == [["seed", "1", "2"]]


def test_an_interval_without_a_limit_is_drawn_out_of_the_frame():
    wide = row("ttft_p95", 0.09, "no difference shown", low=None, high=0.17)
    (plot,) = section(Comparison(sides=[A, B], pairs=[pair(wide)]), "changes").plots
    trace, arrow = plot.traces
    left, right = plot.layout["xaxis"]["range"]
    assert (arrow["x"], arrow["y"]) == ([left], ["TTFT p95"])
    assert arrow["marker"]["symbol"] == "triangle-left"
    assert "no lower limit" in arrow["hovertemplate"]
    assert trace["x"][0] - trace["error_x"]["arrayminus"][0] < left < 0
    assert trace["x"][0] + trace["error_x"]["array"][0] < right


def test_resources_have_their_units_and_a_change_its_sign():
    used = row("host memory_used_bytes_max", form="resource", a=2e9, b=3e9, change_ratio=0.5)
    found = Comparison(sides=[A, B], pairs=[pair(used)])
    text = compare_page.page(found).partition("</main>")[0]
    for words in ("host memory used, max", "2.00 GB", "3.00 GB", "+50.0 %"):
        assert words in text


def test_a_note_stands_under_the_side_that_it_is_about():
    noted = Side(name="before", paths=["x"], kind="imported", notes=["it does not time tokens"])
    notices = section(Comparison(sides=[noted, B], pairs=[pair(row())]), "doubts").notices
    assert [(one.kind, one.text) for one in notices] == [("A", "it does not time tokens")]


def test_without_a_common_load_the_page_says_that():
    found = Comparison(sides=[A, B], pairs=[])
    assert section(found, "answer").sentences == [
        "No load is on both sides: nothing can be compared."
    ]
    assert "No load is on both sides" in compare_page.page(found)


def test_each_side_has_its_line_over_the_loads():
    third = Side(name="later", paths=["runs/later"], kind="measured")
    loads = [("users:4", 0.1), ("users:8", 0.2)]
    pairs = [pair(row(change=c), side=side, load=load) for side in (1, 2) for load, c in loads]
    found = Comparison(sides=[A, B, third], pairs=pairs)
    (plot,) = section(found, "loads").plots
    assert [trace["name"] for trace in plot.traces] == ["A: before", "B: after", "C: later"]
    assert plot.csv_rows[1][0] == "users:8"
    assert [f"{value:.3f}" for value in plot.csv_rows[1][1:]] == ["0.100", "0.120", "0.120"]
    assert [each.choice for each in section(found, "changes").plots] == [
        "B, users:4",
        "B, users:8",
        "C, users:4",
        "C, users:8",
    ]


def test_hostile_names_stay_text():
    side = Side(name=HOSTILE, paths=[HOSTILE], kind="imported", tool=HOSTILE, notes=[HOSTILE])
    side.definitions = {"ttft_s": HOSTILE}
    side.differs = [Difference(what=HOSTILE, a=HOSTILE, b=HOSTILE)]
    side.doubts = [SideDoubt(load=HOSTILE, kind=HOSTILE, message=HOSTILE)]
    pairs = [pair(row(note=HOSTILE), load=load) for load in (HOSTILE, HOSTILE + "2")]
    found = Comparison(sides=[A, side], pairs=pairs, notes=[HOSTILE])
    page = compare_page.page(found).partition("<script>")[0]
    markdown = compare.markdown(found, [])
    assert "<img" not in page + markdown
    terminal = io.StringIO()
    compare.print_table(found, [], terminal, colour=False)
    for text in (markdown, terminal.getvalue(), compare.comma_separated(found)):
        assert "\u202e" not in text


RATIOS = st.none() | st.floats(-1, 1e6)
VALUES = st.none() | st.floats(0, 1e12)


@given(
    st.lists(
        st.builds(
            Row,
            figure=st.sampled_from(["ttft_p50", "ttft_p99", "error_ratio", "requests_per_s"]),
            label=st.text(max_size=9),
            form=st.sampled_from(["seconds", "number", "percent", "resource"]),
            a=VALUES,
            b=VALUES,
            change_ratio=RATIOS,
            low=RATIOS,
            high=RATIOS,
            verdict=st.sampled_from([None, "better", "worse", "no difference shown"]),
            smallest_ratio=RATIOS,
            note=st.text(max_size=5),
        ),
        max_size=5,
    )
)
def test_whatever_the_rows_say_there_is_a_page(rows):
    found = Comparison(sides=[A, B], pairs=[pair(*rows), pair(*rows, load="users:8")])
    assert "How it was compared" in [each.title for each in compare_page.sections(found)]
