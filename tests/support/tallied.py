"""Records of answers and failures, and the tally of them."""

from servescope.records import Record
from servescope.tally import Tally

MS = 1_000_000


def record(request=0, *, gaps=(), tokens=1, first=10 * MS, **other):
    chunks = [first, *gaps]
    count = sum(tokens) if isinstance(tokens, list) else tokens * len(chunks)
    known = {
        "stage": 0,
        "due_ns": 0,
        "sent_ns": 0,
        "chunk_ns": chunks,
        "chunk_tokens": tokens,
        "output_tokens": count,
        "end_ns": sum(chunks),
    }
    return Record(request=request, **known | other)


def tallied(*found):
    tally = Tally()
    for one in found:
        tally.note(one)
    return tally


def failed(request, outcome="failed:http_5xx", reason="HTTP 500; no blocks left", **other):
    known = {"stage": 0, "due_ns": 0, "sent_ns": 0, "end_ns": 1}
    return Record(request=request, outcome=outcome, reason=reason, **known | other)
