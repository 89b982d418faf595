"""Over HTTP, where runs of one configuration are never quite alike."""

from itertools import combinations

import pytest

from servescope.engine.config import parse
from servescope.serve import Server
from tests.compare.runs import simulated
from tests.compare.test_compare import SLOWER, verdicts


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_runs_over_http_are_told_apart_by_what_was_planted_and_by_nothing_else(tmp_path):
    with Server(parse("SIM", "sim:vllm")) as base, Server(parse("SIM", SLOWER)) as slower:
        runs = [
            simulated(tmp_path, f"a{k}", seed=k, requests=150, target=base.url) for k in range(4)
        ]
        planted = [
            simulated(tmp_path, f"b{k}", seed=9 + k, requests=150, target=slower.url)
            for k in range(2)
        ]
    alarms = [{"better", "worse"} & set(verdicts(a, b)) for a, b in combinations(runs, 2)]
    assert sum(map(bool, alarms)) <= 1
    assert all("worse" in verdicts(a, b) for a, b in zip(runs, planted, strict=False))
