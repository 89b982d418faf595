"""Virtual time and real HTTP are the same engine: the same workload gives the same figures."""

import pytest

from servescope.conduct import conduct
from servescope.engine.config import parse
from servescope.experiment import Trial
from servescope.serve import Server
from servescope.summary import summarise

pytestmark = pytest.mark.slow


ON_GPU = "sim:vllm?model=llama-3.1-8b&gpu=h100-sxm-80gb"
"""With a front end."""
TRIES = 3
"""A machine that others use is late now and then: a run that agrees is enough."""


def figures(target, tmp_path, **options):
    """Median and P95 of TTFT and end-to-end, in seconds."""
    run = conduct(Trial(target=target, seed=11, out=str(tmp_path), **options))
    stage = summarise(run).stages[0]
    assert set(stage.outcomes) == {"completed"}
    found = [stage.figures[name] for name in ("ttft_s", "e2e_s")]
    return [value for figure in found for value in (figure.p50, figure.p95)]


@pytest.mark.parametrize(
    ("sim", "options"),
    [
        ("sim:vllm?step=20ms", {"load": ["users:8"], "requests": 200}),
        ("sim:vllm?step=20ms", {"load": ["poisson:25"], "requests": 400}),
        ("sim:vllm?step=20ms&max_num_seqs=4", {"load": ["users:8"], "requests": 48}),
        ("sim:vllm?step=20ms&kv_tokens=640", {"load": ["users:8"], "requests": 200}),
        (
            "sim:vllm?step=20ms",
            {"load": ["users:8"], "requests": 120, "data": "sessions:turns=4,think=30ms"},
        ),
        (ON_GPU, {"load": ["users:4"], "requests": 120}),
        (ON_GPU, {"load": ["poisson:20"], "requests": 240}),
    ],
    ids=["closed", "open", "queue", "preemption", "sessions", "gpu, closed", "gpu, open"],
)
def test_the_same_workload_agrees_within_three_percent(sim, options, tmp_path):
    options |= {"input_tokens": "uniform:32-96", "output_tokens": "uniform:8-24"}
    virtual = figures(sim, tmp_path, **options)
    tried = []
    for _ in range(TRIES):
        with Server(parse("TARGET", sim)) as server:
            tried.append(figures(server.url, tmp_path, **options))
        if tried[-1] == pytest.approx(virtual, rel=0.03):
            return
    raise AssertionError((virtual, tried))
