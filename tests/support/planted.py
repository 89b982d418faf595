"""Stages made up of records, to plant what a doubt must find."""

from servescope.doubts import KINDS, StageFacts, doubts
from servescope.metrics import figures
from servescope.records import Record, Sample, columns

MS = 1_000_000
OPEN = StageFacts(label="constant:100", open=True, rate=100.0, planned=400)
CLOSED = StageFacts(label="users:4", open=False, users=4)


def request(i=0, *, late_ms=0.1, ttft_ms=50, chunks=4, tokens=1, **fields):
    """Request i of a stage of 100 a second, with a well-behaved answer."""
    due = i * 10 * MS
    fields = {"output_tokens": chunks * (tokens or 1), "count_source": "server", **fields}
    sent = fields.pop("sent_ns", due + int(late_ms * MS))
    steps = [sent + ttft_ms * MS, *[10 * MS] * (chunks - 1)] if chunks else []
    return Record(
        request=i, stage=0, due_ns=due, sent_ns=sent, chunk_ns=steps, chunk_tokens=tokens,
        end_ns=sum(steps) if steps else sent + MS, **fields,
    )  # fmt: skip


def steady(n=400, **fields):
    return [request(i, **fields) for i in range(n)]


def raised(records, stage=OPEN, samples=()):
    data = columns(records)
    found = doubts(stage, data, figures(data), samples)
    assert [KINDS.index(d.kind) for d in found] == sorted(KINDS.index(d.kind) for d in found)
    for doubt in found:
        assert doubt.message
        assert doubt.advice
        assert doubt.value is not None
        assert doubt.limit is not None
    return {doubt.kind: doubt for doubt in found}


def loop(name, value, stage="0", worker="0"):
    labels = {"worker": worker, "stage": stage}
    return Sample(t_ns=0, source="loop", name=name, value=value, labels=labels)


def unsent(i, outcome="cancelled"):
    return request(i, sent_ns=-1, chunks=0, outcome=outcome)
