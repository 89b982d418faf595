"""The schedulers of the engines that people serve with: one published policy a file.

A policy is a subclass of `Engine` with a name; being in this folder makes it known.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from servescope.engine.scheduler import Engine
from servescope.errors import BadInput
from servescope.plugins import one_of


@cache
def policies() -> dict[str, type[Engine]]:
    """All policies by name."""
    names = [info.name for info in pkgutil.iter_modules(__path__)]
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    kinds = [kind for module in modules for kind in vars(module).values() if isinstance(kind, type)]
    found = {kind.name: kind for kind in kinds if issubclass(kind, Engine) and kind.name}
    return dict(sorted(found.items()))


def policy(name: str) -> type[Engine]:
    """The policy of that name; raises BadInput."""
    known = policies()
    if name not in known:
        raise BadInput("engine", name, f"want {one_of(name, known)}")
    return known[name]
