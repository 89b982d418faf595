"""JSON as a tree: paths into an answer, and placeholders in a request.

A path is keys and list indices with dots between them. A string of a request may hold `${prompt}`
and the other names in `KINDS`: one that is nothing else becomes a value of that type, within a
longer one it becomes text. Nothing else is replaced; there are no expressions.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from servescope.datasets import Message
from servescope.protocols import ProtocolFault

Tree = Any
"""A JSON value."""
KINDS: dict[str, Any] = {
    "prompt": str,
    "messages": tuple[Message, ...],
    "model": str,
    "output_tokens": int,
    "stream": bool,
}
"""What may stand between `${` and `}`, and the type of its value."""
_HOLE = re.compile(r"\$\{([^}]*)\}?")


def step(tree: Tree, key: str) -> Tree:
    """What an object or a list has under a key; None where it has nothing."""
    if isinstance(tree, dict):
        return tree.get(key)
    if isinstance(tree, list) and key.isdecimal() and int(key) < len(tree):
        return tree[int(key)]
    return None


def put(tree: Tree, path: str, value: object) -> Tree:
    """The tree with a value at a path, which is made where it is not there."""
    key, dot, rest = path.partition(".")
    below = put(step(tree, key), rest, value) if dot else value
    if not key.isdecimal():
        return (tree if isinstance(tree, dict) else {}) | {key: below}
    items = tree if isinstance(tree, list) else []
    items = [*items, *[None] * (int(key) + 1 - len(items))]
    items[int(key)] = below
    return items


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Both objects in one; where both have a value, the other's, unless both are objects."""
    both = one | other
    for key in one.keys() & other.keys():
        if isinstance(one[key], dict) and isinstance(other[key], dict):
            both[key] = merged(one[key], other[key])
    return both


def placeholders(at: str, tree: Tree) -> set[str]:
    """The placeholders in a tree. Raises ValueError, which begins with `at`, for one unknown."""
    if isinstance(tree, dict):
        if any("${" in key for key in tree):
            raise ValueError(f"{at}: want placeholders in values, not in keys")
        return {hole for key, part in tree.items() for hole in placeholders(f"{at}.{key}", part)}
    if isinstance(tree, list):
        return {hole for i, part in enumerate(tree) for hole in placeholders(f"{at}.{i}", part)}
    found = set()
    for hole in _HOLE.finditer(tree) if isinstance(tree, str) else ():
        if hole[1] not in KINDS or not hole[0].endswith("}"):
            known = ", ".join(f"${{{name}}}" for name in KINDS)
            raise ValueError(f"{at}: {hole[0]!r} is no placeholder: want one of {known}")
        if hole[1] == "messages" and hole[0] != tree:
            raise ValueError(f"{at}: want ${{messages}} alone, it is a list; ${{prompt}} is a text")
        found.add(hole[1])
    return found


def filled(tree: Tree, values: dict[str, Any]) -> Tree:
    """The tree with values in place of its placeholders."""
    if isinstance(tree, dict):
        return {key: filled(part, values) for key, part in tree.items()}
    if isinstance(tree, list):
        return [filled(part, values) for part in tree]
    if not isinstance(tree, str):
        return tree
    alone = _HOLE.fullmatch(tree)
    return values[alone[1]] if alone else _HOLE.sub(lambda hole: as_text(values[hole[1]]), tree)


def as_text(value: Tree) -> str:
    """A text as it is, anything else as JSON writes it."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def read_back(tree: Tree, sent: Tree, at: str = "") -> dict[str, Any]:
    """The values that stand in `sent` where the tree has placeholders; the rest is not looked at.

    Raises ProtocolFault with the place where none can stand.
    """
    found: dict[str, Any] = {}
    if isinstance(tree, dict | list):
        parts = tree.items() if isinstance(tree, dict) else enumerate(tree)
        for key, part in parts:
            found |= read_back(part, step(sent, str(key)), f"{at}.{key}" if at else str(key))
        return found
    names = _HOLE.findall(tree) if isinstance(tree, str) else []
    values: tuple[Any, ...] = (sent,)
    alone = bool(names) and _HOLE.fullmatch(tree) is not None
    if names and not alone:
        fixed = "(.*)".join(map(re.escape, _HOLE.split(tree)[::2]))
        match = re.fullmatch(fixed, sent, re.DOTALL) if isinstance(sent, str) else None
        if match is None:
            raise ProtocolFault("http_4xx", f"{at}: want {tree!r}")
        values = match.groups()
    for name, value in zip(names, values, strict=False):
        try:
            found[name] = msgspec.convert(value, KINDS[name], strict=alone)
        except msgspec.ValidationError as error:
            raise ProtocolFault("http_4xx", f"{at}: {error}") from None
    return found


def holds(sent: Tree, wanted: Tree) -> bool:
    """Whether `sent` has all that is wanted; a placeholder wants anything."""
    if isinstance(wanted, dict):
        return all(holds(step(sent, key), part) for key, part in wanted.items())
    if isinstance(wanted, str) and _HOLE.search(wanted):
        return sent is not None
    return bool(sent == wanted)
