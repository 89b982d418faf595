"""Runs on disk without having been run: planted records, written as a run writes them."""

from pathlib import Path

from servescope.analysis import conclude
from servescope.store import Manifest, Run, RunWriter, Stage
from tests.support.planted import steady

HOSTILE = "<img src=x onerror=alert(1)></script><script>alert(2)</script>\"'&amp;\u202e"
"""Text that must stay text."""


def manifest(
    name, *, model="llama-8b", engine="vllm", started="2026-11-20T10:00:00+00:00", **facts
):
    """What a run of one stage writes first."""
    return Manifest(
        name=name,
        servescope="0",
        endpoint={"model": model, "engine": engine, "protocol": "openai-chat", "url": "http://h:1"},
        targets=facts.pop("targets", ["http://h:1"]),
        stages=[Stage(load="constant:100", open=True, rate=100.0, planned=400, start_ns=0)],
        started_utc=started,
        **facts,
    )


def keep(out: Path, name: str, records=None, **facts) -> Path:
    """A run that has ended, with its summary."""
    facts = {"finished_utc": "2026-11-20T10:01:00+00:00", **facts}
    with RunWriter(out, manifest(name, **facts)) as writer:
        for record in steady(40) if records is None else records:
            writer.append(record)
    conclude(Run(writer.path))
    return writer.path
