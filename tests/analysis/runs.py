"""Runs to analyse: simulated ones, and ones whose times are planted."""

from __future__ import annotations

import numpy as np

from servescope.analysis import conclude
from servescope.conduct import conduct
from servescope.experiment import Trial
from servescope.records import Record
from servescope.store import Manifest, Run, RunWriter, Stage


def simulated(out, target="sim:vllm", **options):
    """A run in virtual time, with what was found in it."""
    options = {"input_tokens": "128", "output_tokens": "64", "seed": 5, **options}
    return conclude(conduct(Trial(target=target, out=str(out), **options)))


def planted(
    out,
    sent_s,
    ttft_s,
    e2e_s,
    *,
    stage=None,
    targets=("http://one/",),
    samples=(),
    each=False,
    **rows,
):
    """A run of one stage with these times; of `rows`, each request has its own or all the same."""
    n = len(sent_s)
    offered = stage or Stage(load="poisson:10", open=True, rate=10.0)
    offered.start_ns = 0
    manifest = Manifest(
        name="planted",
        servescope="0",
        targets=list(targets),
        trial={"each": each},
        stages=[offered],
        started_utc="2026-01-01T00:00:00Z",
        finished_utc="2026-01-01T00:01:00Z",
    )
    columns = {name: np.broadcast_to(value, n).tolist() for name, value in rows.items()}
    writer = RunWriter(out, manifest)
    with writer:
        for k in range(n):
            due, first, last = (round(t * 1e9) for t in (sent_s[k], ttft_s[k], e2e_s[k]))
            row = {
                "input_tokens": 100,
                "output_tokens": 2,
                "count_source": "server",
                "due_ns": due,
                **{name: values[k] for name, values in columns.items()},
            }
            writer.append(
                Record(
                    request=k,
                    stage=0,
                    sent_ns=due,
                    first_byte_ns=due + first,
                    chunk_ns=[due + first, last - first],
                    chunk_tokens=1,
                    end_ns=due + last,
                    **row,
                )
            )
        for sample in samples:
            writer.sample(sample)
        writer.flush(now=True)
    return conclude(Run(writer.path))


def said(evidence, kind, stage=...):
    """The findings of a kind; with `stage`, those of that stage."""
    found = [finding for finding in evidence.summary.findings if finding.kind == kind]
    return [finding for finding in found if stage is ... or finding.stage == stage]
