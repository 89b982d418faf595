"""Result files of the field's other tools, as sides of a comparison: one file a tool.

An importer is a tagged struct after `Importer` below. It gives a tool's figures the names of ours
whose definitions they follow, in our units, and says in a sentence each what they mean in the
tool's own code. Where a file tells of each request, figures are worked out from that by our rules;
else they are what the tool summed up.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeAlias

import msgspec

from servescope import plugins
from servescope.errors import BadInput

Figure: TypeAlias = float | dict[str, float]
"""A number, or statistics by name: `mean`, `std`, `min`, `p50`, `p90`, ..., `max`, `n`."""

_HEAD = 1 << 16


class ImportedStage(msgspec.Struct, kw_only=True):
    """One load of another tool's run: what came of its requests, and the figures."""

    load: str
    """The load in our words where it has some (`users:8`, `poisson:5`), else in the tool's."""
    outcomes: dict[str, int]
    """`completed`, `failed` (no other tool tells classes as we do), and `cancelled`: those that the
    tool itself broke off at its end."""
    figures: dict[str, Figure]
    """By our names, in our units; what the file does not say is not there."""
    values: dict[str, Any]
    """By our names, float64 arrays of shape (answered requests,): one value a request, in the order
    of sending where the file tells it, NaN for a request without the figure. Gaps are not here."""


class Imported(msgspec.Struct, kw_only=True):
    """What another tool's result file says."""

    tool: str
    tool_version: str | None
    """None where the file does not say."""
    name: str
    """A short name for the side of a comparison: the file's."""
    definitions: dict[str, str]
    """For each figure that is there, how the tool defines it, in one sentence."""
    stages: list[ImportedStage]
    notes: list[str] = []
    """What else should be known: keys that a file of this tool should have and this one lacks."""


class Importer(Protocol):
    """What every file in this folder provides."""

    file: ClassVar[str]
    """What it reads, for messages."""

    def recognises(self, head: bytes, path: Path) -> bool:
        """Whether a file that begins so, with that name, is one of the tool's."""
        ...

    def read(self, path: Path) -> Imported:
        """Read it. Raises BadInput naming the file and what is wrong."""
        ...


def read(path: str | Path) -> Imported:
    """What a result file of another tool says. Raises BadInput where it is none, or damaged."""
    path = Path(path)
    found = _importer(path)
    if found is None:
        raise BadInput("result file", path, f"want {'; '.join(one.file for one in _importers())}")
    return found.read(path)


def _importer(path: Path) -> Importer | None:
    try:
        if not path.is_file():  # to open a pipe would wait for its writer
            return None
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return None
    return next((one for one in _importers() if one.recognises(head, path)), None)


def _importers() -> list[Importer]:
    found: list[Any] = list(plugins.find(__name__).values())
    return [struct() for struct in found]
