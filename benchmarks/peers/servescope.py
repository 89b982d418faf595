"""servescope itself, by the same rules as the others."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np

from peers.peer import MODEL, PROMPT_TOKENS, Load, Peer, Row
from servescope.store import Run


def arguments(load: Load, scratch: Path) -> list[str]:
    """As a user would type it: what it does by itself, it does here too."""
    words = ["run", load.url, "--model", MODEL, "--requests", str(load.requests)]
    words += ["--input-tokens", str(PROMPT_TOKENS), "--output-tokens", str(load.tokens)]
    words += ["--out", str(scratch), "--name", "said"]
    if load.rate is not None:
        return [*words, "--load", f"poisson:{load.rate:g}"]
    return [*words, "--load", f"users:{load.streams}"]


def read(scratch: Path) -> list[Row]:
    """Its records; that of a request gives the server's count of prompt tokens."""
    run = Run(scratch / "said")
    found = run.columns().answered()
    origin_s = (run.manifest.origin_ns or 0) / 1e9
    rows = []
    for k in range(len(found)):
        at = found.chunk_ns[found.chunk_start[k] : found.chunk_start[k + 1]] / 1e9
        sent_s = float(found.sent_ns[k]) / 1e9
        gaps = np.diff(at).tolist()
        rows.append(Row(origin_s + sent_s, at[0] - sent_s, gaps, int(found.input_tokens[k])))
    return rows


PEER = Peer(
    name="servescope",
    distribution="servescope",
    program=str(Path(sys.executable).parent / "servescope"),
    clock="monotonic",
    arguments=arguments,
    read=read,
)
KEEPS_TEXT = dataclasses.replace(
    PEER,
    name="servescope --keep-text",
    arguments=lambda load, scratch: [*arguments(load, scratch), "--keep-text"],
)
