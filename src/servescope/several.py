"""Several trials: one after the other, or side by side where they are simulated.

A simulation is a pure function of its trial, and keeps one core busy: so many run at once as this
machine has cores, or a Ray cluster.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from servescope.client.machine import usable_cores
from servescope.cluster.head import connected
from servescope.cluster.node import Fault, fault_of, raised
from servescope.conduct import conduct
from servescope.engine.config import SCHEME, parse
from servescope.errors import BadInput, ServescopeError
from servescope.experiment import Trial, resolve
from servescope.store import Run, make_directory, replace

if TYPE_CHECKING:
    from servescope.prepare import Watcher

T = TypeVar("T")
Beside = Callable[[], "Watcher"]
Told = Callable[[str], None]
SIGNALS = ("SIGINT", "SIGTERM")


def conduct_all(
    trials: list[Trial],
    watcher: Watcher | None = None,
    command: list[str] | None = None,
    beside: Beside | None = None,
    told: Told | None = None,
) -> Iterator[Run]:
    """Carry out trials; yields their runs in the same order. Raises what `conduct` does.

    Those that go on side by side on this machine have a watcher each, made by `beside` there; of
    those on a cluster `told` is told when each is over.
    After a run that was interrupted no other begins.
    """
    if len(trials) > 1:
        _check(trials)
    if len(trials) == 1 or not all(map(_is_simulated, trials)):
        for trial in trials:
            run = conduct(trial, watcher, command)
            yield run
            if run.manifest.interrupted in SIGNALS:
                return
        return
    where = {trial.cluster for trial in trials}
    if len(where) > 1:
        want = "want the same for all experiments that are simulated"
        raise BadInput("--cluster", ", ".join(map(str, where)), want)
    cluster = where.pop()
    if cluster is None:
        yield from _here(trials, command, beside)
    else:
        yield from _there(trials, command, cluster, told)


def _is_simulated(trial: Trial) -> bool:
    return any(target.startswith(SCHEME) for target in trial.targets)


def _check(trials: list[Trial]) -> None:
    """Find what is wrong with any of them before the first begins."""
    places = [Path(trial.out, trial.name) for trial in trials if trial.name is not None]
    for place in places:
        if places.count(place) > 1 or place.exists():
            raise BadInput("--name", place, "a run of that name exists; want another name or --out")
    for trial in trials:
        resolve(trial)
        for target in trial.targets:
            if target.startswith(SCHEME):
                parse("TARGET", target)


def _here(trials: list[Trial], command: list[str] | None, beside: Beside | None) -> Iterator[Run]:
    """On the cores of this machine, each run in a process that keeps it itself."""
    from concurrent.futures import ProcessPoolExecutor  # noqa: PLC0415 (of use to many alone)
    from multiprocessing import get_context  # noqa: PLC0415

    # Fresh processes: what this one has loaded may not bear a fork.
    pool = ProcessPoolExecutor(min(len(trials), usable_cores()), get_context("spawn"))
    try:
        for path in [pool.submit(_kept, trial, command, beside) for trial in trials]:
            yield Run(_good(path.result()))
    finally:
        pool.shutdown(cancel_futures=True)


def _kept(trial: Trial, command: list[str] | None, beside: Beside | None = None) -> Path | Fault:
    """Where the run of a trial is, or what is wrong with it."""
    watcher = None if beside is None else beside()
    try:
        return conduct(trial, watcher, command).path
    except ServescopeError as error:
        return fault_of(error)
    finally:
        if watcher is not None:
            watcher.clear()


def _good(found: T | Fault) -> T:
    if isinstance(found, tuple):
        raise raised(found)
    return found


def _there(
    trials: list[Trial], command: list[str] | None, cluster: str, told: Told | None
) -> Iterator[Run]:
    """On a cluster, which begins one again elsewhere when its node dies; kept here."""
    found = []
    with connected(cluster) as ray:
        task = ray.remote(_files).options(num_cpus=1)
        alone = [msgspec.structs.replace(trial, cluster=None) for trial in trials]
        answers = [task.remote(trial, command) for trial in alone]
        if told is not None:
            _tell(ray, trials, answers, told)
        for trial, answer in zip(trials, answers, strict=True):
            files = _good(ray.get(answer))
            name, content = files.popitem()
            path = Path(trial.out, name)
            make_directory(path, sum(map(len, content.values())))
            for file, data in content.items():
                replace(path / file, data)
            run = Run(path)
            run.manifest.trial["out"] = trial.out
            replace(path / "manifest.json", msgspec.json.encode(run.manifest) + b"\n")
            found.append(run)
    yield from found  # not before: meanwhile what is printed goes elsewhere


def _tell(ray: Any, trials: list[Trial], answers: list[Any], told: Told) -> None:  # noqa: ANN401
    """Say which are over, as they are, until all are."""
    told(f"{len(trials):,} simulations on the cluster")
    left = dict(zip(answers, trials, strict=True))
    while left:
        for answer in ray.wait(list(left))[0]:
            name = left.pop(answer).name or "one"
            told(f"{name} is over, {len(trials) - len(left):,} of {len(trials):,}")


def _files(trial: Trial, command: list[str] | None) -> dict[str, dict[str, bytes]] | Fault:
    """A run's directory, by name: the files in it."""
    with tempfile.TemporaryDirectory(prefix="servescope-") as folder:
        found = _kept(msgspec.structs.replace(trial, out=folder), command)
        if not isinstance(found, Path):
            return found
        return {found.name: {path.name: path.read_bytes() for path in found.iterdir()}}
