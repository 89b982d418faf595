"""Every request offered comes back exactly once, whatever the load and whatever the server does."""

import hashlib
import tempfile
from collections import Counter
from contextlib import ExitStack

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from servescope.conduct import conduct
from servescope.experiment import Trial
from servescope.records import ABSENT
from servescope.serve.faults import FAULTS
from servescope.serve.scripted import ScriptedServer, healthy
from servescope.summary import summarise

pytestmark = pytest.mark.waits

TIMEOUTS = {"timeout": "2s", "timeout_first_token": "0.3s", "timeout_between_tokens": "0.3s"}
FINE = healthy(0.002, 0.0005)
QUICK = sorted(
    name
    for name, fault in FAULTS.items()
    if not (fault.refuses or fault.away_s or name in ("slow_drip", "giant_event", "s500_large"))
)

closed = st.builds(
    lambda users, think: f"users:{users},think={think}ms", st.integers(1, 8), st.integers(0, 20)
)
opened = st.builds(
    lambda kind, rate: f"{kind}:{rate}",
    st.sampled_from(["constant", "poisson"]),
    st.integers(20, 400),
)
stages = st.one_of(
    st.tuples(st.lists(closed, min_size=1, max_size=2), st.none()),
    st.tuples(
        st.lists(opened | st.just("burst"), min_size=1, max_size=2), st.none() | st.integers(1, 4)
    ),
)


data = st.sampled_from(["dummy", "sessions:turns=3", "sessions:turns=uniform:1-4,think=5ms"])
targets = st.sampled_from([(1, False), (2, False), (2, True)])
"""How many, and whether each gets the whole load."""


def sha256(request):
    prompt = request.json["messages"][0]["content"]
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


def too_few(load, cap, count, each):
    """Fewer users than targets are refused, and so is a cap of fewer."""
    one = cap == 1 or any(text.startswith("users:1,") for text in load)
    return count > 1 and not each and one


@settings(max_examples=30)
@given(
    stages=stages,
    requests=st.integers(1, 25),
    duration=st.none() | st.just("0.2s"),
    workers=st.integers(1, 3),
    moods=st.lists(st.none() | st.sampled_from(QUICK), min_size=1, max_size=12),
    data=data,
    targets=targets,
)
def test_every_request_offered_comes_back_exactly_once(
    *, stages, requests, duration, workers, moods, data, targets
):
    async def script(request, peer):
        mood = moods[request.number % len(moods)]
        await (FINE if mood is None else FAULTS[mood].script)(request, peer)

    (load, cap), (count, each) = stages, targets
    assume(not too_few(load, cap, count, each))
    with ExitStack() as stack:
        out = stack.enter_context(tempfile.TemporaryDirectory())
        servers = [ScriptedServer(script, tokenize=True) for _ in range(count)]
        for server in servers:
            stack.enter_context(server)
        run = conduct(
            Trial(
                target=[server.url for server in servers],
                each=each,
                protocol="openai-chat",
                data=data,
                input_tokens="12",
                output_tokens="10",
                load=load,
                max_concurrency=cap,
                requests=requests,
                duration=duration,
                workers=workers,
                out=out,
                **TIMEOUTS,
            )
        )
        records, summary = list(run.records()), summarise(run)
        asked = [request for server in servers for request in server.requests]

    assert summary.complete
    indices = [record.request for record in records]
    assert len(set(indices)) == len(indices)
    most = requests * (count if each else 1)
    for number, (stage, found) in enumerate(zip(run.manifest.stages, summary.stages, strict=True)):
        came = sum(record.stage == number for record in records)
        assert sum(found.outcomes.values()) == came
        assert came == stage.planned or (stage.planned is None and came <= most)
        assert came == most or duration is not None

    sent = [record for record in records if record.sent_ns != ABSENT]
    assert len(asked) <= sum(record.attempts for record in sent)
    assert len(asked) >= sum(record.first_byte_ns != ABSENT for record in sent)
    if data != "dummy":  # prompts hold the answers as they came
        return
    seen = Counter(map(sha256, asked))
    by_prompt = {record.prompt_sha256: record for record in sent}
    assert len(by_prompt) == len(sent)
    assert set(seen) <= set(by_prompt)
    for prompt, record in by_prompt.items():
        assert seen[prompt] <= record.attempts
        if record.first_byte_ns != ABSENT:
            assert seen[prompt] >= 1
