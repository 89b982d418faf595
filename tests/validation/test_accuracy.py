"""Predictions agree with what is published as well as docs/accuracy.md says."""

from collections import Counter
from pathlib import Path

import pytest

from servescope import catalog
from servescope.engine.config import EngineConfig
from servescope.plan.error_bars import MEASURED, error_bar
from servescope.validation import error_bars, errors, orders, vllm_traces
from servescope.validation.table import between, markdown
from servescope.validation.tgi_study import theoretical_batch

PAGE = Path(__file__).parents[2] / "docs" / "accuracy.md"


def of(cells, source):
    return [cell for cell in cells if cell.source == source]


def test_the_page_shows_what_is_predicted_now(cells):
    shown = between(PAGE.read_text("utf-8"), "tables")
    assert shown.splitlines() == markdown(cells).splitlines(), "make validate brings it up to date"


def test_error_bars_are_those_that_are_found_now(cells):
    kept = error_bars.path().read_text("utf-8")
    for like, row in error_bars.rows(cells).items():
        assert row in kept or like == "calibrated", "make validate brings them up to date"


@pytest.mark.parametrize("gpu", ["v100-32gb", "mi300x", "b200"])
def test_error_bars_of_an_architecture_that_nobody_measured_are_wider_and_say_why(gpu):
    measured, other = (
        error_bar(EngineConfig(model="qwen2-7b", gpu=name), "latency") for name in ("a100", gpu)
    )
    assert (other.p50, other.p90) > (measured.p50, measured.p90)
    assert "measurement of this GPU's architecture" in other.source


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"pp": 2}, "pipeline stages, of which no measurement is published"),
        ({"tp": 2, "nodes": 2}, "several nodes, of which the one published run"),
        ({"pp": 2, "dtype": "fp8"}, "pipeline stages"),
    ],
)
def test_error_bars_of_pipelines_and_several_nodes_are_the_widest_and_say_why(settings, words):
    one, more, unmeasured = (
        error_bar(EngineConfig(model="qwen2-7b", gpu=gpu, **also), "latency")
        for gpu, also in (("h100", {}), ("h100", settings), ("b200", {}))
    )
    assert more.p90 > one.p90
    assert (more.p50, more.p90) == (unmeasured.p50, unmeasured.p90)
    assert words in more.source


def test_of_several_classes_that_a_deployment_belongs_to_the_widest_error_bar_is_its_own():
    def p90(metric, **settings):
        return error_bar(EngineConfig(gpu="h100", tp=8, **settings), metric).p90

    dense, experts = {"model": "qwen2-72b"}, {"model": "mixtral-8x7b"}
    one = error_bar(EngineConfig(gpu="h100", tp=2, **experts), "latency").p90
    assert p90("latency", **experts) == max(one, p90("latency", **dense)) > one
    assert p90("kv_tokens", **experts) > p90("kv_tokens", **dense)


def test_an_architecture_counts_as_measured_from_five_figures_on(cells):
    """Those that the host alone decides not counted; two architectures have theirs in traces."""
    figures = Counter(
        catalog.gpu(word).architecture
        for cell in cells
        for word in ("v100", "a100", "a40", "l40s", "4090", "h100", "h200", "b200", "mi300x")
        if word in cell.setup.gpu.lower()
        and cell.predicted is not None
        and "decode latency" not in cell.metric
    )
    enough = {name for name, count in figures.items() if count >= error_bars.FEWEST}
    assert enough <= set(MEASURED) <= enough | {"geforce", "blackwell-rtx"}


def test_the_comparison_of_2023_is_within_3_percent_and_its_distributions_within_2_hundredths(
    cells,
):
    table = of(cells, "llm-infer-bench")
    small = [cell for cell in table if "13b" in cell.setup.model]
    assert errors(small).mean < 0.03
    assert errors(of(cells, "llm-infer-bench CDF (digitised)")).mean < 0.02
    assert all(order.is_right for order in orders(table))


@pytest.mark.parametrize("table", ["static", "in-flight batching"])
def test_tables_of_tensorrt_llm_are_within_5_percent_at_the_median_and_20_at_p90(cells, table):
    found = errors(of(cells, f"TensorRT-LLM docs, {table}"))
    assert found.median < 0.05
    assert found.p90 < 0.2


def test_eight_gpus_of_40_gb_hold_111_contexts_of_2048_tokens():
    assert theoretical_batch("A100-40G", 8, 2048) == 111


def test_every_figure_has_a_prediction_or_a_reason(cells):
    assert len(cells) == 522
    assert all(cell.note for cell in cells if cell.predicted is None)
    assert all(cell.predicted > 0 for cell in cells if cell.predicted is not None)


@pytest.mark.skipif(not vllm_traces.folders(), reason=f"{vllm_traces.VARIABLE} names no traces")
def test_traces_are_within_12_percent_and_with_one_constant_within_1():
    found = list(vllm_traces.predict())
    assert errors(of(found, vllm_traces.NOTHING_FITTED)).median < 0.12
    assert errors(of(found, vllm_traces.ONE_CONSTANT)).median < 0.01
    shown = between(PAGE.read_text("utf-8"), "traces")
    assert shown.splitlines() == markdown(found).splitlines()
    assert error_bars.rows(found)["calibrated"] in error_bars.path().read_text("utf-8")
