"""Errors and orders have known answers."""

import math

import pytest

from servescope.validation import Cell, Setup, error_bars, errors, orders


def cell(published, predicted, unit="s", like="", **setup):
    names = {"engine": "a", "gpu": "x", "model": "m", "workload": "w", **setup}
    return Cell(
        source="s", setup=Setup(**names), metric="t", unit=unit, published=published,
        predicted=predicted, quality="exact", like=like,
    )  # fmt: skip


def test_an_error_is_a_ratio_and_of_fractions_a_difference():
    assert cell(2.0, 3.0).error == pytest.approx(0.5)
    assert cell(0.1, 0.15, unit="fraction").error == pytest.approx(0.05)
    assert cell(2.0, None).error is None


def test_statistics_keep_outliers_and_count_what_is_not_predicted():
    found = errors([cell(1, 1.1), cell(1, 0.8), cell(1, 1.3), cell(1, 11), cell(1, None)])
    assert (found.cells, found.unpredicted) == (4, 1)
    assert found.median == pytest.approx(0.25)
    assert found.mean == pytest.approx((0.1 + 0.2 + 0.3 + 10) / 4)
    assert found.p90 == pytest.approx(0.3 + 0.7 * 9.7)
    assert found.bias == pytest.approx(0.2)
    assert math.isnan(errors([cell(1, None)]).median)


def test_orders_compare_what_differs_in_one_thing_and_enough():
    cells = [
        cell(10, 30, engine="a"), cell(20, 31, engine="b"), cell(30, 29, engine="c"),
        cell(30.1, 1, engine="d", gpu="y"),  # differs in two
        cell(10.2, 99, engine="e"),  # too near to the first
        cell(99, None, engine="f"),
    ]  # fmt: skip
    found = [(o.by, *(c.setup.engine for c in o.cells), o.is_right) for o in orders(cells)]
    assert found == [
        ("engine", "a", "b", True), ("engine", "a", "c", False), ("engine", "b", "c", False),
        ("engine", "b", "e", False), ("engine", "c", "e", False),
    ]  # fmt: skip


def test_error_bars_are_the_wider_of_validation_and_study_and_take_half_for_twice():
    near = [cell(1, 1.01, unit="tok/s", like="dense") for _ in range(5)]
    far = [cell(2, 1, like="dense") for _ in range(5)]
    row = error_bars.rows(near + far)["dense"]
    assert "throughput = [0.10, 0.25]" in row
    assert "latency = [1.00, 1.00]" in row
    assert "latency = [0.15, 0.35]" in error_bars.rows(near + far[:4])["dense"]


def test_error_bars_are_the_widest_of_all_where_an_architecture_was_not_measured():
    far = [cell(1, 3, like="narrow") for _ in range(5)]
    rows = error_bars.rows(far)
    assert "latency = [2.00, 2.00]" in rows["narrow"]
    assert "latency = [2.00, 2.00]" in rows["unmeasured"]
    assert "throughput = [0.20, 0.50]" in rows["unmeasured"]
    assert "latency = [0.15, 0.35]" in rows["dense"]
