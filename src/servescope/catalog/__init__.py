"""GPUs, models and engines by name: TOML files with a source for every figure (docs/catalog.md)."""

from __future__ import annotations

import json
import re
import tomllib
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from servescope.catalog.engines import Overheads
from servescope.catalog.gpus import Efficiency, Gpu
from servescope.catalog.models import Model, weight_format
from servescope.errors import BadInput
from servescope.plugins import one_of

__all__ = [
    "Efficiency",
    "Gpu",
    "Model",
    "Overheads",
    "engine",
    "gpu",
    "model",
    "names",
    "weight_format",
]

_MAKERS = re.compile(r"\b(nvidia|amd|tesla|geforce|quadro|instinct)\b")
_VARIANTS = {"hf", "instruct", "chat", "it", "base", "meta", "v0.1", "v0.2", "v0.3", "2507"}
"""Words in a model's name that do not change its shape."""


def names() -> dict[str, tuple[str, ...]]:
    """All names, by kind: `gpus`, `models`, `engines`."""
    return {kind: tuple(_table(kind)) for kind in ("gpus", "models", "engines")}


@cache
def gpu(name: str) -> Gpu:
    """The GPU of a catalogue name, an alias or the driver's name; raises BadInput.

    Part of a name will do where only one has it: `4090`.
    """
    words = re.sub(r"[^a-z0-9]+", " ", _MAKERS.sub("", name.lower())).split()
    words = [re.sub(r"^sxm\d$", "sxm", word) for word in words]
    known = _table("gpus")
    asked, wanted = "-".join(words), set(words)
    for key, entry in known.items():
        if asked in (key, *entry.get("aliases", ())):
            return _gpu(key)
    found = [key for key in known if wanted and wanted <= set(key.split("-"))]
    if len(found) != 1:
        raise BadInput("gpu", name, f"want {one_of(asked, found or known)}")
    return _gpu(found[0])


def model(name_or_path: str) -> Model:
    """The model of a catalogue name, a Hugging Face name or a path; raises BadInput.

    A path is that of a `config.json`, or of a folder with one.
    """
    path = Path(name_or_path).expanduser()
    path = path / "config.json" if path.is_dir() else path
    if path.is_file():
        return _read(path)
    wanted = _shape_name(name_or_path)
    for key, entry in _table("models").items():
        if _shape_name(key) == wanted:
            return Model.from_config(entry["config"], name=key, source=entry["source"])
    want = f"want a path to a config.json or {one_of(name_or_path, _table('models'))}"
    raise BadInput("model", name_or_path, want)


@cache
def engine(name: str) -> Overheads:
    """The overheads of an engine; raises BadInput."""
    known = _table("engines")
    if name not in known:
        raise BadInput("engine", name, f"want {one_of(name, known)}")
    return msgspec.convert(known[name], Overheads)


def _gpu(name: str) -> Gpu:
    entry = dict(_table("gpus")[name])
    entry.setdefault("efficiency", _file("gpus")["architecture"][entry["architecture"]])
    return msgspec.convert({"name": name, **entry}, Gpu)


def _read(path: Path) -> Model:
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput("model", path, f"want a config.json that can be read: {error}") from None
    if not isinstance(config, dict):
        raise BadInput("model", path, "want an object in the config.json")
    return Model.from_config(config, name=path.resolve().parent.name, source=str(path))


def _shape_name(name: str) -> str:
    words = re.split(r"[-_ ]+", name.rsplit("/", 1)[-1].lower())
    return re.sub(r"[^a-z0-9]", "", "".join(word for word in words if word not in _VARIANTS))


def _table(kind: str) -> dict[str, dict[str, Any]]:
    table: dict[str, dict[str, Any]] = _file(kind)[kind.removesuffix("s")]
    return table


@cache
def _file(kind: str) -> dict[str, Any]:
    return tomllib.loads((resources.files(__name__) / f"{kind}.toml").read_text("utf-8"))
