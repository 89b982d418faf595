import importlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from servescope import loads, plugins
from servescope.errors import BadInput
from servescope.load import Closed, Limit, Open

rates = st.floats(0.01, 1e6)
seeds = st.integers(0, 2**40)


def only(text: str):
    (load,) = loads.parse("--load", text)
    return load


def due(text: str, seed: int = 0, **limit) -> np.ndarray:
    offered = only(text).offer(Limit(**limit), np.random.default_rng(seed))
    assert isinstance(offered, Open)
    assert offered.due_ns.dtype == np.int64
    assert np.all(np.diff(offered.due_ns) >= 0)
    return offered.due_ns


@pytest.mark.parametrize(
    ("text", "stages"),
    [
        ("burst", ["burst"]),
        ("sync", ["sync"]),
        ("sync:think=1s", ["sync:think=1s"]),
        ("users:32", ["users:32"]),
        ("users:1,8,32", ["users:1", "users:8", "users:32"]),
        ("users:1,8,think=200ms", ["users:1,think=200ms", "users:8,think=200ms"]),
        ("users:users=3", ["users:3"]),
        ("constant:10", ["constant:10"]),
        ("poisson:2,4,8", ["poisson:2", "poisson:4", "poisson:8"]),
        (" poisson: 0.5 ", ["poisson:0.5"]),
    ],
)
def test_a_load_is_read_as_its_stages_and_each_stage_is_written_the_same_way(text, stages):
    assert [str(load) for load in loads.parse("--load", text)] == stages
    assert [str(only(stage)) for stage in stages] == stages


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "want one of burst"),
        ("poison:4", "did you mean poisson?"),
        ("burst:5", "no settings"),
        ("users", "users:users=..."),
        ("users:0", "from 1"),
        ("users:1,0", "from 1"),
        ("users:1.5", "int"),
        ("users:99999999", "1000000"),
        ("users:8,thnk=1s", "did you mean think?"),
        ("users:8,think=-1s", "want a time"),
        ("sync:think=soon", "want a time"),
        ("poisson:0", "above 0"),
        ("poisson:-1", "above 0"),
        ("poisson:nan", "above 0"),
        ("poisson:inf", "above 0"),
        ("constant:x", "float"),
        ("constant:1,,2", "between the commas"),
        ("constant:1,rate=2", "either"),
        ("constant:rate=1,rate=2", "only once"),
    ],
)
def test_a_wrong_load_is_refused_with_what_would_be_right(text, hint):
    with pytest.raises(BadInput) as caught:
        loads.parse("--load", text)
    assert caught.value.field == "--load"
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("burst", {"duration_s": 5.0}),
        ("burst", {"requests": 10**9}),
        ("poisson:1", {}),
        ("poisson:1000", {"duration_s": 1e9}),
        ("constant:1", {"requests": 10**9}),
        ("constant:1e-9", {"requests": 5}),
        ("constant:1e-300", {"requests": 1}),
        ("poisson:1e300", {"duration_s": 1e300}),
    ],
)
def test_a_load_without_an_end_or_with_an_impossible_one_is_refused(text, limit):
    with pytest.raises(BadInput) as caught:
        due(text, **limit)
    assert caught.value.field == "--load"


def test_a_burst_offers_every_request_at_once():
    assert due("burst", requests=5).tolist() == [0] * 5


@pytest.mark.parametrize(
    ("text", "users", "think_s"),
    [("sync", 1, 0.0), ("users:7", 7, 0.0), ("users:7,think=250ms", 7, 0.25), ("sync:2s", 1, 2.0)],
)
def test_users_are_a_closed_load(text, users, think_s):
    offered = only(text).offer(Limit(requests=9), np.random.default_rng(0))
    assert offered == Closed(users=users, think_s=think_s)


@given(rates, st.integers(2, 3000))
def test_a_constant_load_never_drifts(rate, requests):
    found = due(f"constant:{rate!r}", requests=requests)
    assert found.tolist() == [round(k * 1e9 / rate) for k in range(requests)]


def test_a_constant_load_is_constant():
    gaps = np.diff(due("constant:7", requests=100_000))
    assert gaps.std() / gaps.mean() < 1e-6
    assert gaps.max() - gaps.min() <= 1


@given(st.sampled_from(["constant", "poisson"]), st.floats(0.5, 2000), st.floats(0.01, 5), seeds)
def test_a_load_by_duration_ends_strictly_before_it_and_misses_nothing(name, rate, end_s, seed):
    found = due(f"{name}:{rate!r}", seed, duration_s=end_s)
    assert np.all(found < end_s * 1e9)
    more = due(f"{name}:{rate!r}", seed, requests=len(found) + 1)
    assert more[:-1].tolist() == found.tolist()
    assert more[-1] >= end_s * 1e9


def test_a_request_due_exactly_at_the_end_is_not_offered():
    assert due("constant:10", duration_s=1.0).tolist() == [k * 100_000_000 for k in range(10)]


@given(st.sampled_from(["constant", "poisson"]), st.integers(1, 200), st.floats(0.1, 9), seeds)
def test_the_limit_that_comes_first_ends_the_stage(name, requests, duration_s, seed):
    both = due(f"{name}:20", seed, requests=requests, duration_s=duration_s)
    by_count = due(f"{name}:20", seed, requests=requests)
    by_time = due(f"{name}:20", seed, duration_s=duration_s)
    assert both.tolist() == min(by_count, by_time, key=len).tolist()


@given(rates, st.integers(1, 500), st.integers(1, 500), seeds)
def test_a_longer_poisson_load_begins_like_a_shorter_one(rate, n, more, seed):
    short, long = (due(f"poisson:{rate!r}", seed, requests=k) for k in (n, n + more))
    assert short.tobytes() == long[:n].tobytes()


def test_a_poisson_load_has_exponential_gaps_from_the_start_on():
    gaps = np.diff(due("poisson:8", 3, requests=50_000), prepend=0) / 1e9
    assert stats.kstest(gaps, stats.expon(scale=1 / 8).cdf).pvalue > 0.01
    assert gaps[0] > 0


def test_a_poisson_load_is_neither_lumpy_nor_regular_over_time():
    per_second = np.bincount(due("poisson:50", 5, duration_s=2000.0) // 10**9, minlength=2000)
    assert per_second.var() / per_second.mean() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("lattice_ns", [10**9, 10**6, 10**3])
def test_a_poisson_load_falls_on_no_lattice(lattice_ns):
    phase = due("poisson:5", 7, requests=50_000) % lattice_ns
    assert stats.kstest(phase / lattice_ns, "uniform").pvalue > 0.01


def test_a_file_dropped_into_the_folder_is_a_load(tmp_path, monkeypatch):
    (tmp_path / "twice.py").write_text(
        "import msgspec\n"
        "class Twice(msgspec.Struct, frozen=True, tag='twice'):\n"
        "    '''Help.'''\n"
        "    rate: float\n"
        "    def __str__(self): return f'twice:{self.rate:g}'\n"
    )
    monkeypatch.setattr(loads, "__path__", [*loads.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    plugins.find.cache_clear()
    try:
        assert [str(load) for load in loads.parse("--load", "twice:2,3")] == ["twice:2", "twice:3"]
    finally:
        sys.modules.pop("servescope.loads.twice", None)
        plugins.find.cache_clear()


def test_listing_loads_and_data_sets_imports_nothing_heavy():
    script = (
        "import sys; from servescope.plugins import find\n"
        "find('servescope.loads'), find('servescope.datasets'); sys.exit('numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
