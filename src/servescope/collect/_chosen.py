"""What is read in a run: what its trial asks for, and by default this machine and its targets."""

from __future__ import annotations

import os

import msgspec

from servescope.client.address import Address, parse_target, redact, through_proxy
from servescope.client.secret import Secret
from servescope.collect import Collector, parse
from servescope.collect._collection import Collection
from servescope.collect._target import TargetPage
from servescope.collect.gpu import Gpu
from servescope.collect.host import Host
from servescope.collect.prometheus import Prometheus
from servescope.errors import BadInput
from servescope.experiment import Trial

NONE = "none"
"""Stands for 'nothing by default' in `--collect`."""


def asked(trial: Trial) -> list[Collector]:
    """The collectors that a trial names. Raises BadInput."""
    found = [parse("--collect", text) for text in trial.collect if text != NONE]
    found += [_named(url) for url in trial.metrics]
    return list({one.source: one for one in found}.values())


def _named(url: str) -> Collector:
    """The page at a URL, or at a bare host:port, as targets are named. Raises BadInput."""
    try:
        return parse("--metrics", f"prometheus:{url if '://' in url else f'http://{url}'}")
    except BadInput as error:
        raise BadInput(error.field, redact(url), error.want) from None


def collection(
    trial: Trial, named: list[Collector], targets: list[str], key: Secret | None
) -> Collection:
    """What reads them, with the default ones that nobody named; the key goes to targets alone."""
    pages = [_page(trial, target, key) for target in targets]
    # With a query it is the same page.
    known = {one.source.partition("?")[0] for one in named}
    default = [] if NONE in trial.collect else [*pages, Host(), Gpu()]
    return Collection(
        [_own(one, pages) for one in named], [one for one in default if one.source not in known]
    )


def _page(trial: Trial, target: str, key: Secret | None) -> TargetPage:
    """The page of a target below its base URL."""
    address = parse_target(target)
    if trial.targets:  # no proxy has to do with an engine that was started here
        address = through_proxy(address, os.environ)
    return TargetPage(
        address=address,
        path=f"{address.prefix}/metrics",
        key=key,
        ca_file=trial.ca_file,
        client_cert=trial.client_cert,
        client_key=trial.client_key,
        insecure=trial.insecure,
    )


def _own(one: Collector, pages: list[TargetPage]) -> Collector:
    """A page that the user names is reached as the load is, if it is of a target itself."""
    if not isinstance(one, Prometheus):
        return one
    address, path = one.place
    for page in pages:
        if _origin(page.address) == _origin(address):
            changed = {"every": one.every, "path": path, "timeout_s": one.timeout_s}
            return msgspec.structs.replace(page, **changed)
    return one


def _origin(address: Address) -> tuple[str, str, int]:
    """Who it is that answers: that of a Unix socket is nobody's whom a user's URL could name."""
    return (address.scheme, address.host, address.port)
