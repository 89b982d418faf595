"""The files of docs/extend.md, taken from the page and used as a reader would use them."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

import servescope
from servescope.store import Run

REPOSITORY = Path(__file__).parents[1]
PAGE = (REPOSITORY / "docs" / "extend.md").read_text()
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```\n", PAGE, re.DOTALL))
FOLDERS = {
    "pulses.py": "loads", "sums.py": "datasets", "echo.py": "protocols", "memory.py": "collect",
}  # fmt: skip
SERVER = """
import sys
from tests.support.served import Served, healthy
with Served(healthy(0.01, 0.001)) as served:
    print(served.url, flush=True)
    sys.stdin.read()
"""
COLLECT = """
import json, sys
from servescope.collect import parse
from servescope.collect._collection import Collection
with Collection([parse("--collect", sys.argv[1])]) as collection:
    collection.begin(0)
    collection.end()
kept = [(s.source, s.name, s.value, s.labels) for s in collection.drain()]
print(json.dumps({"kept": kept, "notes": collection.notes}))
"""
MEMINFO = "MemTotal: 9 kB\nMemFree: 3 kB\nMemAvailable:  5 kB\nHugePages_Total: 0\n"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Where `pip install` put the page's package."""
    project, target = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("target")
    package = project / "servescope_echo"
    package.mkdir()
    (package / "__init__.py").touch()
    (project / "pyproject.toml").write_text(FILES["pyproject.toml"])
    for name in FOLDERS:
        (package / name).write_text(FILES[name])
    install(project, target)
    return target


@pytest.fixture(scope="module")
def dropped_in(tmp_path_factory):
    """A copy of the sources with the page's files in their folders."""
    copy = tmp_path_factory.mktemp("copy")
    ours = Path(servescope.__file__).parent
    shutil.copytree(ours, copy / "servescope", ignore=shutil.ignore_patterns("__pycache__"))
    for name, folder in FOLDERS.items():
        (copy / "servescope" / folder / name).write_text(FILES[name])
    return copy


@pytest.fixture(params=["installed", "dropped_in"])
def extended(request):
    """A folder for PYTHONPATH with which the page's four files are known."""
    return request.getfixturevalue(request.param)


def install(project: Path, target: Path) -> None:
    words = ["install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    words += ["--disable-pip-version-check", "--target", str(target), str(project)]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True, timeout=100)


def paths(*first: Path) -> str:
    before = os.environ.get("PYTHONPATH")
    return os.pathsep.join(str(path) for path in (*first, before) if path)


def python(*words: object, path: Path, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, words)],
        env=os.environ | {"PYTHONPATH": paths(path)},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@contextmanager
def served(path: Path):
    """A server that speaks every protocol known with this path; its URL."""
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        env=os.environ | {"PYTHONPATH": paths(path, REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with server:
        try:
            yield server.stdout.readline().strip()
        finally:
            server.stdin.close()


def test_a_load_a_data_set_and_a_protocol_from_elsewhere_make_one_run(extended, tmp_path):
    options = ["--protocol", "echo", "--data", "sums:9", "--load", "pulses:4,every=0.1"]
    options += ["--requests", "10", "--output-tokens", "6", "--seed", "7", "--keep-text"]
    options += ["--collect", f"memory:{tmp_path / 'meminfo'},every=200ms"]
    options += ["--out", tmp_path, "--name", "echoed", "--quiet"]
    (tmp_path / "meminfo").write_text(MEMINFO)
    with served(extended) as url:
        ran = python("-m", "servescope", "run", url, *options, path=extended, cwd=tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")

    run = Run(tmp_path / "echoed")
    assert run.manifest.endpoint["protocol"] == "echo"
    assert run.manifest.endpoint["path"] == "/echo"
    assert [(s.load, s.planned) for s in run.manifest.stages] == [("pulses:4,every=0.1", 10)]
    records = sorted(run.records(), key=lambda record: record.request)
    start_ns = run.manifest.stages[0].start_ns
    pulses = [0] * 4 + [100_000_000] * 4 + [200_000_000] * 2
    assert [record.due_ns - start_ns for record in records] == pulses
    assert all(re.fullmatch(r"What is \d \+ \d\?", record.prompt) for record in records)
    assert len({record.prompt for record in records}) > 1
    counted = {(r.outcome, r.input_tokens, r.output_tokens, r.count_source) for r in records}
    assert counted == {("completed", 5, 6, "server")}
    kept = {(s.name, s.value) for s in run.samples() if s.source == "memory"}
    assert kept == {("up", 1), ("free_bytes", 3072), ("available_bytes", 5120)}


def test_a_collector_from_elsewhere_is_read(extended, tmp_path):
    (tmp_path / "meminfo").write_text(MEMINFO)
    ran = python("-c", COLLECT, f"memory:{tmp_path / 'meminfo'},every=200ms", path=extended)
    found = json.loads(ran.stdout)
    once = [
        ["memory", "up", 1, {}],
        ["memory", "free_bytes", 3072, {"of": "machine"}],
        ["memory", "available_bytes", 5120, {"of": "machine"}],
    ]
    assert found["kept"] in (once, once * 2)  # the end of the run is read, too
    assert found["notes"] == []


def test_a_name_from_elsewhere_is_listed_and_suggested_as_the_page_shows(extended):
    ran = python(
        "-m", "servescope", "run", "http://127.0.0.1:9", "--load", "pulse:8", path=extended
    )
    assert ran.returncode == 2
    known, hint = re.fullmatch(
        r"servescope: --load: 'pulse:8': want one of (.*) \(did you mean (.*)\?\)\n", ran.stderr
    ).groups()
    assert ("pulses" in known.split(", "), hint) == (True, "pulses")
    assert "(did you mean pulses?)" in PAGE


def test_a_setting_from_elsewhere_is_checked_like_our_own(extended):
    for words, want in (
        (["--load", "pulses:0"], "want a size of 1 or more"),
        (["--load", "pulses:4,evry=1"], "did you mean every?"),
        (["--data", "sums:nine"], "Expected `int`"),
    ):
        ran = python("-m", "servescope", "run", "http://127.0.0.1:9", *words, path=extended)
        assert ran.returncode == 2
        assert want in ran.stderr
        assert ran.stderr.count("\n") == 1


def test_the_protocol_of_the_page_passes_the_conformance_tests(installed, tmp_path):
    text = (REPOSITORY / "tests" / "protocols" / "test_conformance.py").read_text()
    line = re.search(r' *"echo": Form\(.*\),\n', PAGE)[0]
    suite = tmp_path / "test_conformance.py"
    suite.write_text(text.replace("FORMS = {\n", f"FORMS = {{\n{line}"))
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, "-k", "echo"]
    ran = python(*words, suite, path=installed)
    assert ran.returncode == 0, ran.stdout
    assert int(re.search(r"(\d+) passed", ran.stdout)[1]) > 10


# --- what is wrong with another distribution


def distribution(target: Path, name: str, module: str, entry: str) -> Path:
    """A distribution as pip leaves it: a module, and entry points in its metadata."""
    info = target / f"{name}-2.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.5\n")
    (info / "entry_points.txt").write_text(f"[servescope.loads]\n{entry}\n")
    (target / f"{name}.py").write_text(module)
    return target


@pytest.mark.parametrize(
    ("module", "entry", "words"),
    [
        ("import nothing_of_this_name", "x = foreign:X", "No module named 'nothing_of_this_name'"),
        ("1 +", "x = foreign:X", "SyntaxError"),
        ("raise OSError('no\\ndisk')", "x = foreign:X", "OSError: no disk"),
        ("", "x = foreign:X", "AttributeError"),
        ("", "x = elsewhere:X", "No module named 'elsewhere'"),
        ("class X: pass", "x = foreign:X", "want a msgspec.Struct with a tag"),
        ("X = 5", "x = foreign:X", "want a msgspec.Struct with a tag"),
        (
            "import msgspec\nclass X(msgspec.Struct, tag='poisson'): pass",
            "x = foreign:X",
            "the name poisson is taken",
        ),
    ],
)
def test_a_broken_plug_in_is_one_line_that_names_its_distribution(tmp_path, module, entry, words):
    path = distribution(tmp_path, "foreign", module, entry)
    ran = python("-m", "servescope", "run", "http://127.0.0.1:9", "--load", "burst", path=path)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("servescope: plug-in of foreign 2.5: ")
    assert words in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_the_page_shows_every_kind_and_every_group(installed):
    assert set(FILES) == {*FOLDERS, "pyproject.toml"}
    found = importlib.metadata.distributions(name="servescope-echo", path=[str(installed)])
    groups = {entry.group for one in found for entry in one.entry_points}
    assert groups == {f"servescope.{folder}" for folder in FOLDERS.values()}
