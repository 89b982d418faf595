"""Runs for comparisons: simulated ones, and directories written record by record."""

from servescope.analysis import conclude
from servescope.conduct import conduct
from servescope.experiment import declare
from servescope.records import Record
from servescope.store import Manifest, RunWriter, Stage

MS = 1_000_000


def simulated(out, name, *, seed, target="sim:vllm", load=("users:8",), requests=300, **more):
    """A run in virtual time, with random lengths; its directory."""
    options = {
        "target": target, "load": list(load), "requests": requests, "out": str(out), "name": name,
        "seed": seed, "data": "dummy", "input_tokens": "exponential:mean=128,max=512",
        "output_tokens": "uniform:8-48",
    }  # fmt: skip
    run = conduct(declare(options | more))
    conclude(run)
    return run.path


def written(
    out, name, *, times_ms, load="constant:100", loads=None, trial=None, outcome=None,
    failing=None, **manifest,
):  # fmt: skip
    """A measured run whose request k takes `times_ms[k]` to the first token; 4 tokens, 10 ms each.

    `outcome(k)` is a request's, `completed` by default, of the stages `failing` (all);
    `loads` makes several stages alike.
    """
    loads = loads or [load]
    stages = [
        Stage(load=text, open=True, rate=100.0, planned=len(times_ms), start_ns=0) for text in loads
    ]
    about = Manifest(
        name=name, servescope="0.1.0", trial=trial or {}, stages=stages,
        endpoint={"model": "m", "engine": "vllm", "url": "http://127.0.0.1:1"},
        started_utc="2026-01-01T00:00:00+00:00", finished_utc="2026-01-01T00:01:00+00:00",
    )  # fmt: skip
    for key, value in manifest.items():
        setattr(about, key, value)
    with RunWriter(out, about) as writer:
        for stage in range(len(loads)):
            for k, ms in enumerate(times_ms):
                told = outcome and (failing is None or stage in failing)
                writer.append(_record(stage, k, ms, outcome(k) if told else "completed"))
    return out / name


def _record(stage, k, ms, outcome):
    sent = k * 10 * MS
    steps = [sent + round(ms * MS), 10 * MS, 10 * MS, 10 * MS] if outcome == "completed" else []
    return Record(
        request=10_000 * stage + k, stage=stage, due_ns=sent, sent_ns=sent, chunk_ns=steps,
        chunk_tokens=1 if steps else None, end_ns=sum(steps) if steps else sent + MS,
        input_tokens=10, output_tokens=4 if steps else None, count_source="server",
        outcome=outcome,
    )  # fmt: skip
