"""A machine that is full is said to be, with whose work it was as far as that is known."""

import numpy as np
import pytest

from servescope.records import Sample
from tests.analysis.runs import planted, said


def run(out, busy, target="http://127.0.0.1:9/", **cores):
    """A run of 10 s on a machine of two cores that are busy so much; each role has its cores."""
    samples = []
    for t in range(11):
        rows = [("up", 1.0, {}), ("cpu_busy_ratio", busy, {})]
        rows += [("cpu_busy_ratio", busy, {"core": core}) for core in "01"]
        rows += [("process_cpu_s", each * t, {"role": role}) for role, each in cores.items()]
        samples += [
            Sample(t_ns=t * 10**9, source="host", name=name, value=value, labels=labels)
            for name, value, labels in rows
        ]
    sent, took = np.arange(100) * 0.1, np.full(100, 0.1)
    found = planted(out, sent, took, took * 2, targets=(target,), samples=samples)
    return [one.sentence for one in said(found, "machine")]


def test_the_rest_of_a_full_machine_is_the_servers_and_others_where_the_server_is_on_it(tmp_path):
    (sentence,) = run(tmp_path, 0.99, load=0.2, conductor=0.05)
    assert sentence == (
        "this machine was full: 99 % of its 2 cores were busy on average, 0.250 of them with the "
        "load; the server and whatever else ran here shared the rest, and latencies may be those "
        "of a machine short of CPU"
    )


@pytest.mark.parametrize(
    ("cores", "words"),
    [
        ({"load": 0.2, "engine": 0.8}, "and 0.800 with the engine; other work had 1.00"),
        ({"load": 0.2, "engine": 1.79}, "and 1.79 with the engine, and latencies"),
    ],
)
def test_what_an_engine_that_the_run_started_takes_is_told_from_other_work(tmp_path, cores, words):
    (sentence,) = run(tmp_path, 1.0, **cores)
    assert words in sentence


def test_of_a_server_elsewhere_it_concerns_the_load_alone(tmp_path):
    (sentence,) = run(tmp_path, 1.0, target="http://192.0.2.1:8000/", load=0.5)
    assert sentence.endswith("0.500 of them with the load; other work had 1.50")


def test_a_machine_with_something_left_is_not_mentioned(tmp_path):
    assert run(tmp_path, 0.9, load=0.2) == []
