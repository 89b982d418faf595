"""The floors of the house: a module imports only from its own floor or from below."""

import ast
from pathlib import Path

import pytest

import servescope

HOME = Path(servescope.__file__).parent
MODULES = sorted(HOME.rglob("*.py"))
FLOORS = {
    "errors": 0, "units": 0, "plugins": 0, "seeds": 0,
    "records": 1, "store": 1,
    "stats": 2, "token_times": 2, "metrics": 2, "goodput": 2, "doubts": 2, "summary": 2,
    "tally": 2, "error_bars": 2, "findings": 2, "telemetry": 2,
    "experiment": 3, "experiment_file": 3, "deal": 3, "sessions": 3, "load": 3, "loads": 3,
    "catalog": 3, "lengths": 3, "text": 3, "rulers": 3, "vocabulary": 3, "datasets": 3, "traces": 3,
    "engine": 4, "protocols": 4,
    "client": 5, "serve": 5, "collect": 5,
    "stage": 6, "share": 6, "several": 6, "cluster": 6, "prepare": 6, "simulated": 6, "offers": 6,
    "conduct": 6, "engines": 6,
    "selftest": 6, "instrument": 6, "doctor": 6,
    "analysis": 7, "importers": 7, "plan": 7, "validation": 7,
    "report": 8,
    "cli": 9, "cli_doctor": 9, "cli_selftest": 9, "cli_read": 9, "cli_compare": 9,
    "cli_view": 9, "cli_plan": 9, "cli_trial": 9, "__main__": 9, "__init__": 9,
}  # fmt: skip
WORLD = {"socket", "ssl", "select", "selectors", "asyncio", "http", "subprocess"}
FORBIDDEN = {"pickle", "marshal", "shelve", "dill", "cloudpickle"}
MOST_LINES = 400


def name(path):
    return path.relative_to(HOME).as_posix()


def floor(path):
    return FLOORS[path.relative_to(HOME).parts[0].removesuffix(".py")]


def imports(path, *, everywhere=True):
    """Names of the modules that a file imports; those for the type checker alone are left out."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    nodes = ast.walk(tree) if everywhere else iter(tree.body)
    for node in nodes:
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_imports_only_from_its_own_floor_or_below(path):
    for module in imports(path, everywhere=floor(path) < 9):
        parts = module.split(".")
        if parts[0] == "servescope" and len(parts) > 1 and parts[1] in FLOORS:
            assert FLOORS[parts[1]] <= floor(path), module


@pytest.mark.parametrize("path", [p for p in MODULES if floor(p) not in (5, 6)], ids=name)
def test_sockets_loops_and_processes_are_on_floors_5_and_6_alone(path):
    for module in imports(path):
        assert module.partition(".")[0] not in WORLD, module
        assert not module.startswith("urllib.request")


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_nothing_is_unpickled_or_evaluated(path):
    assert not FORBIDDEN & set(imports(path))
    called = (n.func for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call))
    assert not {f.id for f in called if isinstance(f, ast.Name)} & {"eval", "exec", "compile"}


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_file_is_short_enough_to_be_read(path):
    assert len(path.read_text().splitlines()) <= MOST_LINES


@pytest.mark.parametrize("folder", ["loads", "datasets", "protocols", "collect"])
def test_plug_ins_import_nothing_heavy_at_the_top(folder):
    for path in (HOME / folder).glob("*.py"):
        tops = {module.partition(".")[0] for module in imports(path, everywhere=False)}
        assert not tops & {"rich", "click", "pyarrow", "tokenizers", "scipy"}, path
