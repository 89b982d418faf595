"""Over HTTP, where runs of one configuration are never quite alike."""

from concurrent.futures import ThreadPoolExecutor
from itertools import combinations

import pytest

from servescope.engine.config import parse
from servescope.serve import Server
from tests.compare.runs import simulated
from tests.compare.test_compare import SLOWER, verdicts


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_runs_over_http_are_told_apart_by_what_was_planted_and_by_nothing_else(tmp_path):
    def run(seed, engine):
        with Server(parse("SIM", engine)) as server:  # its own: they run side by side
            return simulated(tmp_path, str(seed), seed=seed, requests=150, target=server.url)

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(run, [0, 1, 2, 3, 9, 10], ["sim:vllm"] * 4 + [SLOWER] * 2))
    runs, planted = found[:4], found[4:]
    alarms = [{"better", "worse"} & set(verdicts(a, b)) for a, b in combinations(runs, 2)]
    assert sum(map(bool, alarms)) <= 1
    assert all("worse" in verdicts(a, b) for a, b in zip(runs, planted, strict=False))
