"""Runs whose reports are looked at: swept, failed, hostile, broken off."""

import msgspec

from servescope.conduct import conduct
from servescope.experiment import Trial
from servescope.records import Sample
from servescope.store import Run, RunWriter, Stage
from tests.support.kept import HOSTILE, manifest
from tests.support.planted import MS, request, steady


def simulated(out, name="sweep", **options):
    """A sweep of the simulated engine in virtual time, to beyond what it can take."""
    declared = {
        "target": ["sim:vllm?kv_tokens=4096&step=12ms"],
        "load": ["poisson:4,16,24,32"],
        "requests": 60,
        "slo": ["ttft_p99<400ms"],
        "seed": 3,
        **options,
    }
    return conduct(Trial(out=str(out), name=name, **declared))


def planted(out, name, stages, samples=(), **facts):
    """A run of these stages: of each its load and its records."""
    facts = {"finished_utc": "2026-11-20T10:01:00+00:00", **facts}
    first = manifest(name, **facts)
    first.stages = [
        Stage(load=load, open=True, rate=100.0, planned=len(records), start_ns=0, cache=cache)
        for load, cache, records in stages
    ]
    with RunWriter(out, first) as writer:
        shift = 0
        for number, (_, _, records) in enumerate(stages):
            for record in records:
                moved = {
                    "request": record.request + number * 10_000,
                    "stage": number,
                    "due_ns": record.due_ns + shift,
                    "sent_ns": record.sent_ns if record.sent_ns < 0 else record.sent_ns + shift,
                    "end_ns": record.end_ns + shift,
                }
                if record.chunk_ns:
                    moved["chunk_ns"] = [record.chunk_ns[0] + shift, *record.chunk_ns[1:]]
                writer.append(msgspec.structs.replace(record, **moved))
            shift += 10_000 * MS
        for sample in samples:
            writer.sample(sample)
    return Run(writer.path)


def hostile(out):
    """A run in which everything that comes from elsewhere tries to be more than text."""
    failed = [
        request(i, chunks=0, outcome="failed:http_5xx", reason=f"=1+1 {HOSTILE}", status=500)
        for i in range(40, 60)
    ]
    return planted(
        out,
        "hostile",
        [
            (f"constant:{HOSTILE}", None, [*steady(40), *failed]),
            (f"=cmd|{HOSTILE}", None, steady(40)),
        ],
        samples=[
            Sample(t_ns=t * 100 * MS, source=source, name=name, value=0.5 + t / 100, labels=labels)
            for t in range(10)
            for source, name, labels in (
                ("gpu", "up", {}),
                ("gpu", "gpu_busy_ratio", {"gpu": HOSTILE, "name": HOSTILE}),
                (f"prometheus:{HOSTILE}", "up", {}),
                (f"prometheus:{HOSTILE}", "gpu_busy_ratio", {"gpu": "0"}),
                (f"prometheus:{HOSTILE}", "vllm:num_requests_running", {"model_name": HOSTILE}),
            )
        ],
        model=HOSTILE,
        engine="<b>engine</b> %{x}",
        notes=[HOSTILE],
        command=["servescope", "run", HOSTILE],
        trial={"slo": ["ttft_p99<200ms"], "tags": {HOSTILE: HOSTILE}},
    )


def broken_off(out):
    """A run that was killed."""
    return planted(out, "killed", [("constant:100", None, steady(30))], finished_utc=None)
