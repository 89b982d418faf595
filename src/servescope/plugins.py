"""Plug-ins: a file in a folder such as `loads/` or `datasets/` *is* the plug-in.

Its struct's tag is the option's value, its docstring the help, its fields the settings. Other
distributions join through an entry-point group named like the package: `servescope.loads`.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec

from servescope.errors import BadInput

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

_MOST_TOLD = 50


@cache
def find(package: str) -> dict[str, type[msgspec.Struct]]:
    """Every tagged struct in the modules of `package` and in its entry-point group, by tag.

    Raises BadInput naming the other distribution whose plug-in cannot be loaded.
    """
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
        value = _load(entry)
        if _tag(value) in found:
            raise _unfit(entry, f"the name {_tag(value)} is taken; want another tag")
        found[_tag(value)] = value
    return dict(sorted(found.items()))


def _load(entry: EntryPoint) -> type[msgspec.Struct]:
    """What another distribution brings. Raises BadInput naming it where that is no plug-in."""
    try:
        value = entry.load()
    except Exception as error:  # noqa: BLE001 (its module may do anything when it is imported)
        why = f"cannot be loaded ({type(error).__name__}: {error})"
        raise _unfit(entry, f"{why}; mend or uninstall it") from None
    if not _tag(value):
        raise _unfit(entry, "want a msgspec.Struct with a tag")
    found: type[msgspec.Struct] = value
    return found


def _unfit(entry: EntryPoint, want: str) -> BadInput:
    owner = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown distribution"
    return BadInput(f"plug-in of {owner}", entry.value, " ".join(want.split()))


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


def parse(field: str, package: str, text: str) -> Any:  # noqa: ANN401
    """The plug-in of `package` that 'NAME[:settings]' asks for; raises BadInput naming `field`.

    Settings are `key=value` with commas between them. A lone value is the main setting, mostly a
    path or a URL; what holds no key belongs to the part before it, so that it may hold commas.
    """
    name, parts = split(field, text)
    settings: dict[str, str] = {}
    key = main_field(package, name) or ""
    for named, value in parts:
        if named in settings:
            raise BadInput(field, text, f"want {named} only once")
        is_key = named.isidentifier()
        whole = f"{named}={value}" if named and not is_key else value  # http://host/?a=b
        key = named if is_key else key
        settings[key] = f"{settings[key]},{whole}" if key in settings else whole
    try:
        return make(field, package, name, settings)
    except BadInput as error:
        raise BadInput(field, text if error.value == name else error.value, error.want) from None


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
    """'one of a, b, c (did you mean b?)' for a message about an unknown value.

    Of very many names only the likely one is told.
    """
    names = list(known)
    import difflib  # noqa: PLC0415 (5 ms, for a message)

    close = difflib.get_close_matches(value, names, n=1)
    if close and len(names) > _MOST_TOLD:
        return f"one of {len(names)} names (did you mean {close[0]}?)"
    hint = f" (did you mean {close[0]}?)" if close else ""
    return (f"one of {', '.join(names)}" if names else "no settings here") + hint


def _tag(value: object) -> str:
    if isinstance(value, type) and issubclass(value, msgspec.Struct):
        tag = value.__struct_config__.tag
        return tag if isinstance(tag, str) else ""
    return ""
