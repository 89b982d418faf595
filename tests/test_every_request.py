"""Every request offered comes back exactly once, whatever the load and whatever the server does."""

import hashlib
import tempfile
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servescope.conduct import conduct
from servescope.experiment import Trial
from servescope.records import ABSENT
from servescope.serve.faults import FAULTS
from servescope.serve.scripted import ScriptedServer, healthy
from servescope.summary import summarise

pytestmark = pytest.mark.slow

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


def sha256(request):
    prompt = request.json["messages"][0]["content"]
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


@settings(max_examples=20)
@given(
    stages=stages,
    requests=st.integers(1, 25),
    duration=st.none() | st.just("0.2s"),
    workers=st.integers(1, 3),
    moods=st.lists(st.none() | st.sampled_from(QUICK), min_size=1, max_size=12),
)
def test_every_request_offered_comes_back_exactly_once(stages, requests, duration, workers, moods):
    async def script(request, peer):
        mood = moods[request.number % len(moods)]
        await (FINE if mood is None else FAULTS[mood].script)(request, peer)

    load, cap = stages
    with ScriptedServer(script, tokenize=True) as server, tempfile.TemporaryDirectory() as out:
        run = conduct(
            Trial(
                target=server.url,
                protocol="openai-chat",
                data="dummy",
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
        seen = Counter(map(sha256, server.requests))

    assert summary.complete
    indices = [record.request for record in records]
    assert len(set(indices)) == len(indices)
    for number, (stage, found) in enumerate(zip(run.manifest.stages, summary.stages, strict=True)):
        came = sum(record.stage == number for record in records)
        assert sum(found.outcomes.values()) == came
        assert came == stage.planned or (stage.planned is None and came <= requests)

    sent = {record.prompt_sha256: record for record in records if record.sent_ns != ABSENT}
    assert len(sent) == sum(record.sent_ns != ABSENT for record in records)
    assert set(seen) <= set(sent)
    for prompt, record in sent.items():
        assert seen[prompt] <= record.attempts
        if record.first_byte_ns != ABSENT:
            assert seen[prompt] >= 1
