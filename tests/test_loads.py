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
from tests.support.refusal import refused

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
        ("gamma:4", ["gamma:4,cv=1"]),
        ("gamma:2,4,cv=2", ["gamma:2,cv=2", "gamma:4,cv=2"]),
        ("gamma:rate=4,cv=0.5", ["gamma:4,cv=0.5"]),
        ("ramp:1-20", ["ramp:1-20"]),
        ("ramp:0-2.5,9-1,over=60s", ["ramp:0-2.5,over=60s", "ramp:9-1,over=60s"]),
        ("ramp:from=1,to=1e-5,arrivals=poisson", ["ramp:1-1e-05,arrivals=poisson"]),
        ("trace:a.csv,scale=2", ["trace:a.csv,scale=2"]),
        ("trace:a.csv,b.csv", ["trace:a.csv", "trace:b.csv"]),
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
        ("gamma:4,cv=0", "want cv from 0.01"),
        ("gamma:0", "above 0"),
        ("ramp", "ramp:1-20"),
        ("ramp:20", "ramp:1-20"),
        ("ramp:1-2-3", "ramp:1-20"),
        ("ramp:from=1", "ramp:1-20"),
        ("ramp:1-20,to=5", "ramp:1-20"),
        ("ramp:1-0", "above 0"),
        ("ramp:1-1e300", "at most 1e+09"),
        ("ramp:1-20,over=soon", "want a time"),
        ("ramp:1-20,over=0s", "above 0"),
        ("ramp:1-20,arrivals=uniform", "arrivals=poisson"),
        ("trace", "trace:path=..."),
        ("trace:a.csv,scale=0", "how many times as fast"),
        ("sweep:0", "want n from 1"),
        ("sweep:4,users=0", "want users from 1"),
        ("sweep:4,arrivals=uniform", "arrivals=poisson"),
    ],
)
def test_a_wrong_load_is_refused_with_what_would_be_right(text, hint):
    with refused("--load", hint):
        loads.parse("--load", text)


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
        ("gamma:1,cv=2", {}),
        ("gamma:1000", {"duration_s": 1e9}),
        ("ramp:1-20", {}),
        ("ramp:0-1000", {"duration_s": 1e9}),
        ("ramp:0-1e-9", {"requests": 5}),
        ("ramp:0-1e-300", {"requests": 5}),
        ("ramp:0-1,over=100000h", {"requests": 5}),
        ("trace:no/such/file.csv", {"requests": 5}),
    ],
)
def test_a_load_without_an_end_or_with_an_impossible_one_is_refused(text, limit):
    with refused("--load"):
        due(text, **limit)


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


steady = st.sampled_from(["constant:{}", "poisson:{}", "gamma:{},cv=0.3", "gamma:{},cv=3"])


@given(steady, st.floats(0.5, 2000), st.floats(0.01, 5), seeds)
def test_a_load_by_duration_ends_strictly_before_it_and_misses_nothing(form, rate, end_s, seed):
    found = due(form.format(rate), seed, duration_s=end_s)
    assert np.all(found < end_s * 1e9)
    more = due(form.format(rate), seed, requests=len(found) + 1)
    assert more[:-1].tolist() == found.tolist()
    assert more[-1] >= end_s * 1e9


def test_a_request_due_exactly_at_the_end_is_not_offered():
    assert due("constant:10", duration_s=1.0).tolist() == [k * 100_000_000 for k in range(10)]


@given(
    steady | st.sampled_from(["ramp:1-{},over=4s", "ramp:{}-1,over=4s,arrivals=poisson"]),
    *(st.integers(1, 200), st.floats(0.1, 9), seeds),
)
def test_the_limit_that_comes_first_ends_the_stage(form, requests, duration_s, seed):
    both = due(form.format(20), seed, requests=requests, duration_s=duration_s)
    by_count = due(form.format(20), seed, requests=requests)
    by_time = due(form.format(20), seed, duration_s=duration_s)
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


@pytest.fixture(scope="module")
def trace(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("trace") / "trace.csv"
    rows = "".join(f"{k * k / 100},{k},1\n" for k in range(1, 31))
    path.write_text("time_s,input_tokens,output_tokens\n" + rows)
    return str(path)


any_load = st.sampled_from(
    [
        *("burst", "constant:7", "poisson:7", "gamma:7,cv=4"),
        *("ramp:0-9", "ramp:9-1,over=2s,arrivals=poisson"),
        *("trace:{trace}", "trace:{trace},scale=0.5"),
    ]
)


@given(any_load, st.integers(1, 60), st.none() | st.floats(0.1, 20), seeds)
def test_every_load_offers_at_most_the_limit_and_the_same_for_the_same_seed(
    trace, text, requests, duration_s, seed
):
    one, other = (
        due(text.format(trace=trace), seed, requests=requests, duration_s=duration_s)
        for _ in range(2)
    )
    assert one.tobytes() == other.tobytes()
    assert len(one) <= requests
    assert np.all(one >= 0)
    assert duration_s is None or np.all(one < duration_s * 1e9)


# --- gamma


@given(rates, st.sampled_from([0.2, 1, 3]), st.integers(1, 300), st.integers(1, 300), seeds)
def test_a_longer_gamma_load_begins_like_a_shorter_one(rate, cv, n, more, seed):
    short, long = (due(f"gamma:{rate!r},cv={cv}", seed, requests=k) for k in (n, n + more))
    assert short.tobytes() == long[:n].tobytes()


@pytest.mark.parametrize("cv", [0.1, 0.5, 1, 2, 4])
def test_a_gamma_load_has_gamma_gaps_of_its_mean_and_variation(cv):
    gaps = np.diff(due(f"gamma:8,cv={cv}", 3, requests=100_000), prepend=0) / 1e9
    assert gaps.mean() == pytest.approx(1 / 8, rel=0.01 * max(1, cv))
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.03)
    law = stats.gamma(cv**-2, scale=cv**2 / 8)
    # whole nanoseconds make ties of the many gaps that are almost nothing
    large = gaps[gaps > 1e-6] if cv > 1 else gaps
    least = law.cdf(1e-6) if cv > 1 else 0.0
    assert len(large) / len(gaps) == pytest.approx(1 - least, abs=0.01)
    assert stats.kstest((law.cdf(large) - least) / (1 - least), "uniform").pvalue > 0.01


# --- ramp


@given(st.floats(0, 50), st.floats(0.1, 50), st.floats(0.5, 30))
def test_a_ramp_offers_what_its_rate_adds_up_to(low, high, duration_s):
    found = due(f"ramp:{low!r}-{high!r}", duration_s=duration_s)
    assert len(found) == pytest.approx((low + high) / 2 * duration_s, abs=1.001)
    half = (low + (low + high) / 2) / 2 * duration_s / 2
    assert np.sum(found < duration_s / 2 * 1e9) == pytest.approx(half, abs=1.001)


@given(st.floats(0, 50), st.floats(0.1, 50), st.integers(2, 500))
def test_a_ramp_of_so_many_requests_is_as_long_as_they_need(low, high, requests):
    found = due(f"ramp:{low!r}-{high!r}", requests=requests)
    assert len(found) == requests
    length_s = requests / ((low + high) / 2)
    rate = low + (high - low) * found / 1e9 / length_s
    added_up = (low + rate) / 2 * found / 1e9
    assert added_up == pytest.approx(np.arange(requests), abs=1e-6 * requests)


def test_a_ramp_from_1_to_3_per_second_has_known_due_times():
    # t + t^2 / 10 = k over ten seconds, as the rate is 1 + t / 5
    known = [np.sqrt(25 + 10 * k) - 5 for k in range(20)]
    assert due("ramp:1-3", duration_s=10.0) / 1e9 == pytest.approx(known, abs=1e-9)
    assert due("ramp:from=1,to=3", requests=20) / 1e9 == pytest.approx(known, abs=1e-9)


def test_a_ramp_between_equal_rates_is_a_constant_load():
    assert due("ramp:7-7", requests=500).tolist() == due("constant:7", requests=500).tolist()


def test_after_its_ramp_the_last_rate_holds():
    found = due("ramp:2-10,over=5s", duration_s=20.0)
    assert np.sum(found < 5e9) == 30
    later = found[found >= 5e9]
    assert len(later) == 150
    assert np.diff(later) == pytest.approx(1e8, abs=1)


def test_a_poisson_ramp_is_a_poisson_process_in_the_time_of_its_rate():
    found = due("ramp:0-200,arrivals=poisson", 1, duration_s=300.0) / 1e9
    added_up = 200 / 300 * found**2 / 2
    assert stats.kstest(np.diff(added_up, prepend=0), "expon").pvalue > 0.01
    assert len(found) == pytest.approx(30_000, rel=0.02)


# --- trace


def test_a_trace_is_offered_at_its_own_times(trace):
    offered = only(f"trace:{trace}").offer(Limit(requests=5), np.random.default_rng(0))
    assert offered.due_ns.tolist() == [0, 30_000_000, 80_000_000, 150_000_000, 240_000_000]
    assert (offered.rate, offered.rows) == (None, 30)


def test_a_scale_of_two_offers_a_trace_twice_as_fast(trace):
    whole = due(f"trace:{trace}", requests=30)
    assert due(f"trace:{trace},scale=2", requests=30) == pytest.approx(whole / 2, abs=1)


def test_a_trace_is_offered_once_whatever_is_asked_for(trace):
    assert len(due(f"trace:{trace}", requests=1000)) == 30
    assert len(due(f"trace:{trace}", duration_s=1000.0)) == 30
    assert len(due(f"trace:{trace}")) == 30


def test_a_trace_that_lasts_for_years_is_refused(trace):
    with pytest.raises(BadInput, match="would last for years"):
        due(f"trace:{trace},scale=1e-12", requests=5)


# --- sweep


def test_a_sweep_is_one_user_then_saturation_then_rates():
    assert [str(stage) for stage in loads.parse("--load", "sweep:3,users=64")] == [
        *("sync", "users:64"),
        *("sweep:1/3", "sweep:2/3", "sweep:3/3"),
    ]
    assert len(loads.parse("--load", "sweep")) == 10


def settled(text: str, *measured: float, before: tuple[float, ...] = ()) -> list[str]:
    """The rates of a sweep whose first two stages gave `measured`, and each later one 5."""
    stages, found = loads.parse("--load", text), [*before, *measured]
    rates = []
    for stage in stages[2:]:
        rates.append(str(stage.settle(found)))
        found.append(5.0)
    return rates


def test_a_sweep_goes_evenly_from_one_at_a_time_up_to_saturation():
    assert settled("sweep:4", 2, 10) == ["constant:4", "constant:6", "constant:8", "constant:10"]
    assert settled("sweep:2,arrivals=poisson", 1, 4) == ["poisson:2.5", "poisson:4"]


def test_a_sweep_looks_at_its_own_stages_alone():
    assert settled("sweep:4", 2, 10, before=(77.0, 0.0)) == settled("sweep:4", 2, 10)


def test_a_sweep_of_a_server_that_gains_nothing_from_many_users_rises_from_nothing():
    assert settled("sweep:4", 8, 6) == ["constant:2", "constant:4", "constant:6", "constant:8"]
    assert settled("sweep:2", 8, 0) == ["constant:4", "constant:8"]


def test_a_sweep_of_a_server_that_serves_nothing_goes_on_slowly():
    assert settled("sweep:2", 0, 0) == ["constant:1", "constant:1"]


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
