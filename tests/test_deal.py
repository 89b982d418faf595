"""Which load process sends which request: together they offer what one would."""

import dataclasses
from itertools import chain

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from servescope.client.feed import Settings
from servescope.client.workers import share
from servescope.datasets import Single
from servescope.deal import Deal
from servescope.load import Closed, Limit, Open

SETTINGS = Settings(
    *(2, ("127.0.0.1", 80), "h", False, False, None, "", "openai-chat", True),
    **dict.fromkeys(("connect_ns", "first_token_ns", "between_tokens_ns", "total_ns"), 1),
    max_bytes=1,
)


def dealt(offer, requests, processes, **more):
    deal = Deal(
        offer=offer, limit=Limit(requests=requests), items=Single(None), first_item=0, **more
    )
    return [[one.k for one in deal.requests(k, processes)] for k in range(processes)]


@given(
    users=st.integers(1, 40),
    processes=st.integers(1, 8),
    rounds=st.integers(1, 6),
    loads=st.integers(1, 3),
)
def test_each_user_has_as_many_requests_whatever_the_number_of_processes(
    users, processes, rounds, loads
):
    processes = min(processes, users * loads)
    requests = users * rounds
    found = dealt(Closed(users=users), requests, processes, targets=loads, each=True)
    assert sorted(chain(*found)) == list(range(requests * loads))
    everyone = share_of(users * loads, processes)
    assert [len(numbers) / rounds for numbers in found] == everyone


def share_of(users, processes):
    settings = dataclasses.replace(SETTINGS, users=users)
    return [share(settings, k, processes).users for k in range(processes)]


def test_requests_of_an_open_load_are_dealt_in_turn():
    offer = Open(due_ns=np.arange(7))
    assert dealt(offer, None, 3) == [[0, 3, 6], [1, 4], [2, 5]]
