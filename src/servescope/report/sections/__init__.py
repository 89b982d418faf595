"""The report's sections: one a file, in the order of their `PLACE`.

A file here has `PLACE` and `section(evidence)`, which gives None where there is nothing to show.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from servescope.analysis.evidence import Evidence
    from servescope.report.content import Section


def sections(evidence: Evidence) -> list[Section]:
    """What a report of a run is made of."""
    found = (module.section(evidence) for module in _modules())
    return [section for section in found if section is not None]


@cache
def _modules() -> list[Any]:
    names = [info.name for info in pkgutil.iter_modules(__path__)]
    found = [importlib.import_module(f"{__name__}.{name}") for name in names]
    return sorted(found, key=lambda module: int(module.PLACE))
