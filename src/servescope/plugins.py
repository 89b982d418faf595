"""Plug-ins: a file in a folder such as `loads/` or `datasets/` *is* the plug-in.

Its struct's tag is the option's value, its docstring the help, its fields the settings. Other
distributions join through an entry-point group named like the package: `servescope.loads`.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from functools import cache
from typing import Any

import msgspec

from servescope.errors import BadInput


@cache
def find(package: str) -> dict[str, type[msgspec.Struct]]:
    """Every tagged struct in the modules of `package` and in its entry-point group, by tag."""
    from importlib.metadata import entry_points  # noqa: PLC0415 (13 ms, and not for every command)

    home = importlib.import_module(package)
    found: dict[str, type[msgspec.Struct]] = {}
    for info in pkgutil.iter_modules(home.__path__):
        if info.name.startswith("_"):
            continue
        module = importlib.import_module(f"{package}.{info.name}")
        for value in vars(module).values():
            if _tag(value) and value.__module__ == module.__name__:
                found[_tag(value)] = value

    for entry in entry_points(group=package):
        value = entry.load()
        found[_tag(value) or entry.name] = value
    return dict(sorted(found.items()))


def make(field: str, package: str, name: str, settings: dict[str, Any]) -> Any:  # noqa: ANN401
    """The plug-in `name` of `package` with its settings; raises BadInput naming `field`.

    Settings may be strings: they are converted to the types of the struct's fields.
    """
    known = find(package)
    if name not in known:
        raise BadInput(field, name, f"want {one_of(name, known)}")
    struct = known[name]
    keys = [f.encode_name for f in msgspec.structs.fields(struct)]
    for key in settings:
        if key not in keys:
            raise BadInput(field, f"{name}: {key}", f"want {one_of(key, keys)}")
    for f in msgspec.structs.fields(struct):
        if f.required and f.encode_name not in settings:
            raise BadInput(field, name, f"want {f.encode_name} too: {name}:{f.encode_name}=...")
    try:
        return msgspec.convert(settings, struct, strict=False)
    except msgspec.ValidationError as error:
        raise BadInput(field, name, f"{error}") from None


def split(field: str, text: str) -> tuple[str, list[tuple[str, str]]]:
    """Name and parts of 'name:value,key=value': pairs whose key is '' for a lone value.

    This is the syntax of `--load`, `--data` and lengths. Raises BadInput naming `field` when a part
    is empty or a key comes twice.
    """
    name, colon, rest = text.strip().partition(":")
    parts: list[tuple[str, str]] = []
    for part in rest.split(",") if colon else []:
        key, equals, value = part.strip().partition("=")
        parts.append((key.strip(), value.strip()) if equals else ("", key))
        if not parts[-1][1] or (equals and not key):
            raise BadInput(field, text, "want a value or key=value between the commas")
        if equals and parts[-1][0] in [key for key, _ in parts[:-1]]:
            raise BadInput(field, text, f"want {parts[-1][0]} only once")
    return name.strip(), parts


def main_field(package: str, name: str) -> str | None:
    """The setting a lone value is for: the plug-in's first field; None when it has no fields."""
    struct = find(package).get(name)
    fields = msgspec.structs.fields(struct) if struct else ()
    return fields[0].encode_name if fields else None


def one_of(value: str, known: Any) -> str:  # noqa: ANN401
    """'one of a, b, c (did you mean b?)' for a message about an unknown value."""
    names = list(known)
    close = difflib.get_close_matches(value, names, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return (f"one of {', '.join(names)}" if names else "no settings here") + hint


def _tag(value: object) -> str:
    if isinstance(value, type) and issubclass(value, msgspec.Struct):
        tag = value.__struct_config__.tag
        return tag if isinstance(tag, str) else ""
    return ""
