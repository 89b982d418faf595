"""A run's directory: what is appended comes back, whatever happened to the writer."""

import stat

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from servescope.errors import BadInput
from servescope.records import OUTCOMES, Record, Sample, columns
from servescope.store import Manifest, Run, RunWriter, Stage, slug

TIMES = st.integers(min_value=0, max_value=10**15)


@st.composite
def records(draw):
    chunks = draw(st.lists(TIMES, max_size=6))
    tokens = st.one_of(
        st.none(),
        st.integers(1, 9),
        st.lists(st.integers(0, 9), min_size=len(chunks), max_size=len(chunks)),
    )
    return Record(
        request=draw(st.integers(0, 1000)),
        stage=draw(st.integers(-1, 3)),
        due_ns=draw(TIMES),
        sent_ns=draw(st.one_of(st.just(-1), TIMES)),
        chunk_ns=chunks,
        chunk_tokens=draw(tokens),
        pinned=draw(st.booleans()),
        input_tokens=draw(st.one_of(st.none(), st.integers(0, 10**6))),
        outcome=draw(st.sampled_from(OUTCOMES)),
        reason=draw(st.text(max_size=20)),
    )


def written(tmp_path, lines, name="x"):
    manifest = Manifest(
        name=name, servescope="0", started_utc="now", stages=[Stage(load="sync", open=False)]
    )
    with RunWriter(tmp_path, manifest) as writer:
        for line in lines:
            writer.append(line)
    return Run(writer.path)


@given(st.lists(records(), max_size=8))
def test_records_come_back_from_their_lines_as_they_were(many):
    lines = b"\n".join(msgspec.json.encode(record) for record in many)
    found = [msgspec.json.decode(line, type=Record) for line in lines.split(b"\n") if line]
    assert found == many


@given(st.lists(records(), max_size=8))
def test_columns_hold_what_the_records_hold(many):
    table = columns(many)
    for i, record in enumerate(many):
        row = slice(table.chunk_start[i], table.chunk_start[i + 1])
        assert table.chunk_ns[row].tolist() == np.cumsum(record.chunk_ns).tolist()
        assert OUTCOMES[table.outcome[i]] == record.outcome
        assert table.input_tokens[i] == (-1 if record.input_tokens is None else record.input_tokens)


@given(st.lists(records(), max_size=8), st.integers(0, 255))
def test_choosing_rows_of_columns_is_choosing_records(many, bits):
    mask = np.array([bool(bits >> i & 1) for i in range(len(many))], np.bool_)
    chosen = columns([record for record, wanted in zip(many, mask, strict=True) if wanted])
    found = columns(many).where(mask)
    for name in chosen.__slots__:
        assert np.array_equal(getattr(found, name), getattr(chosen, name)), name


def test_a_line_that_a_kill_cut_off_is_left_out_and_the_rest_is_read(tmp_path):
    run = written(tmp_path, [Record(request=k, stage=0, due_ns=k) for k in range(5)])
    path = run.path / "requests.jsonl"
    path.write_bytes(path.read_bytes()[:-7])
    assert [record.request for record in run.records()] == [0, 1, 2, 3]


def test_a_request_with_an_outcome_of_another_version_is_bad_input(tmp_path):
    run = written(tmp_path, [Record(request=0, stage=0, due_ns=0, outcome="failed:dns")])
    with pytest.raises(BadInput, match=r"requests\.jsonl:1.*outcome"):
        run.columns()


def test_the_cache_is_made_anew_when_the_requests_have_grown(tmp_path):
    run = written(tmp_path, [Record(request=0, stage=0, due_ns=0)])
    assert len(run.columns()) == 1
    with (run.path / "requests.jsonl").open("ab") as stream:
        stream.write(msgspec.json.encode(Record(request=1, stage=0, due_ns=1)) + b"\n")
    assert len(run.columns()) == 2


@pytest.mark.parametrize("keep", [0, 1, 1000])
def test_a_broken_cache_is_no_obstacle(tmp_path, keep):
    run = written(tmp_path, [Record(request=0, stage=0, due_ns=0)])
    run.columns()
    cache = run.path / "columns.npz"
    cache.write_bytes(cache.read_bytes()[:keep])
    assert len(run.columns()) == 1


def test_files_are_readable_by_their_owner_alone(tmp_path):
    run = written(tmp_path, [Record(request=0, stage=0, due_ns=0)])
    run.columns()
    for path in run.path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_samples_come_back(tmp_path):
    manifest = Manifest(name="x", servescope="0", started_utc="now")
    sample = Sample(t_ns=5, source="loop", name="cpu_ratio", value=0.5, labels={"stage": "0"})
    with RunWriter(tmp_path, manifest) as writer:
        writer.sample(sample)
    assert Run(writer.path).samples() == [sample]


def test_a_directory_that_is_no_run_is_bad_input(tmp_path):
    with pytest.raises(BadInput, match=r"manifest\.json"):
        Run(tmp_path)
    for text in ('{"schema": 1}', "[" * 100_000):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(BadInput, match="want a run's directory"):
            Run(tmp_path)


def test_a_run_without_its_requests_is_bad_input(tmp_path):
    run = written(tmp_path, [])
    (run.path / "requests.jsonl").unlink()
    with pytest.raises(BadInput, match=r"requests\.jsonl: No such file"):
        run.columns()


@pytest.mark.parametrize("name", ["../../etc", "/etc/passwd", "a b/c", "..", "\x1b[31m", "ü" * 500])
def test_a_name_becomes_one_safe_component_of_a_path(name):
    assert "/" not in slug(name)
    assert not slug(name).startswith(".")
    assert len(slug(name)) <= 100
