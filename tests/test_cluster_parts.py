"""What a cluster needs of each side, without a cluster: files, clocks, and what is refused."""

import os
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servescope import cli
from servescope.client.probe import Endpoint
from servescope.cluster.node import Node, Parcel, raised
from servescope.cluster.stage import Place
from servescope.errors import BadInput
from servescope.experiment import Trial, resolve
from servescope.protocols import declared
from servescope.rulers import ruler_by_words
from tests.support.command import Command


def parcel(tmp_path, files, **options):
    trial = Trial(target="http://127.0.0.1:1", out=str(tmp_path), seed=1, **options)
    endpoint = Endpoint(url=trial.target, protocol="openai-chat", path="", model="m")
    wire = declared("--protocol", "openai-chat")
    facts = {"plan": resolve(trial), "endpoint": endpoint, "wire": wire, "ruler": ruler_by_words()}
    return Parcel(facts, files)


def test_a_file_of_prompts_goes_to_the_node_with_the_run(tmp_path, save):
    path = save("prompts.txt", "first\nsecond\n")
    sent = parcel(tmp_path, {path: b"first\nsecond\n"}, data=f"file:{path}")
    Path(path).unlink()
    node = Node()
    assert node.equip(sent, [], {}) is None
    assert {node._kit.items(k).prompt for k in range(2)} == {"first", "second"}
    node.close()


def test_a_file_too_large_to_be_sent_must_be_on_the_node(tmp_path, save):
    path = save("prompts.txt", "first\nsecond\n")
    sent = parcel(tmp_path, {path: 13}, data=f"file:{path}")
    node = Node()
    assert node.equip(sent, [], {}) is None
    Path(path).write_text("another\n")
    fault = node.equip(sent, [], {})
    node.close()
    with pytest.raises(BadInput, match=re.escape(os.uname().nodename)):
        raise raised(fault)


@given(
    offset=st.integers(-(10**15), 10**15),
    trips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), min_size=1),
)
def test_an_offset_is_wrong_by_no_more_than_its_uncertainty(offset, trips):
    place, now = Place(name="n", id="n"), 0
    for there, back in trips:
        clock, after = now + there + offset, now + there + back
        used, uncertainty = place.follow(clock - after, clock - now)
        assert used == place.offset_ns
        assert abs(used - offset) <= uncertainty <= there + back
        now = after + 1
    assert abs(place.offset_ns - offset) <= max(there + back for there, back in trips)
    there, back = trips[-1]
    assert -back <= place.offset_ns - offset <= there


def test_a_clock_that_no_trip_disproves_stays_as_it_is():
    place = Place(name="n", id="n")
    place.follow(100, 120)
    assert place.offset_ns == 110
    place.follow(0, 1000)
    assert place.offset_ns == 110
    assert place.follow(115, 1000) == (115, 885)
    assert place.offset_ns == 115


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("nonsense", "want auto, ray://HOST:PORT or HOST:PORT"),
        ("ray://127.0.0.1", "want auto, ray://HOST:PORT or HOST:PORT"),
        ("127.0.0.1:9", "nothing answers there"),
        ("ray://127.0.0.1:9", "nothing answers there"),
    ],
)
def test_an_address_that_is_no_cluster_is_refused_in_one_line(tmp_path, address, said):
    refused = Command("run", "--cluster", address, "--out", "runs", cwd=tmp_path)
    assert refused.wait() == 2
    assert said in refused.err
    assert refused.err.count("\n") == 1
    assert not list(tmp_path.glob("runs/*"))


def test_without_ray_it_is_said_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(sys, "argv", ["servescope", "run", "--cluster", "auto", "--out", "runs"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as status:
        cli.main()
    assert status.value.code == 2
    assert "pip install 'servescope[ray]'" in capsys.readouterr().err


def test_one_simulated_target_has_no_use_for_a_cluster(tmp_path):
    refused = Command("run", "sim:vllm", "--cluster", "auto", "--out", "runs", cwd=tmp_path)
    assert refused.wait() == 2
    assert "--cluster" in refused.err
