"""What this machine gives a load: cores, open files, ports; and so how many processes offer it.

Imports little: the load process reads the words for its own faults from here.
"""

from __future__ import annotations

import errno
import math
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from servescope.errors import BadInput
from servescope.load import Closed

if TYPE_CHECKING:
    from servescope.experiment import Trial
    from servescope.load import Open

ROOT = Path("/")
REQUEST_S, TOKEN_S = 75e-6, 8e-6
"""CPU time of a load process for a request and for each token of its answer (docs/doctor.md)."""
BUSIEST = 0.6
"""Above this share of a core a loop begins to be late."""
STREAM_TOKENS_PER_S = 100.0
"""How fast one answer is taken to come: what a server will do is not known before."""
USUAL_TOKENS = 64
"""Of an answer whose length the data decides."""
TOKENS_DRAWN = 256
"""Lengths drawn to know their mean."""
SPARE_FILES = 64
"""What a process opens besides its connections."""
FILES_A_WORKER = 4
"""What the conductor opens for a load process."""
PORTS_FILE = "proc/sys/net/ipv4/ip_local_port_range"
NO_FILES = "too many open files"
NO_PORTS = "cannot assign requested address"


# --- what there is --------------------------------------------------------------------------------


def usable_cores(root: Path = ROOT) -> int:
    """Cores that this process may keep busy: its affinity, and the CPU time it is allowed."""
    return max(1, int(min(affinity(), cpu_quota(root))))


def affinity() -> int:
    """Cores that the scheduler may put this process on."""
    return len(os.sched_getaffinity(0))


def cpu_quota(root: Path = ROOT) -> float:
    """CPU seconds a second that this process's control groups allow; infinite without a limit."""
    found = [math.inf]
    for group in control_groups(root):
        words = _words(group / "cpu.max")
        if not words:  # version 1 has two files
            words = _words(group / "cpu.cfs_quota_us") + _words(group / "cpu.cfs_period_us")
        if len(words) == 2 and all(word.isdecimal() for word in words):
            found.append(int(words[0]) / int(words[1]))
    return min(found)


def control_groups(root: Path = ROOT) -> Iterator[Path]:
    """Directories of the control groups that this process is in, and of those above them."""
    top = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        mount = top / (controllers or "unified")
        mount = mount if mount.is_dir() else top
        group = mount / path.lstrip("/")
        # In a container the path may be the host's, of which only the mount itself is seen.
        yield from (one for one in (group, *group.parents) if one.is_relative_to(mount))


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def open_files() -> tuple[int, int]:
    """Limits on open files of a process: the present one, and how far it may be raised."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _finite(soft), _finite(hard)


def _finite(limit: int) -> int:
    return 1 << 30 if limit == resource.RLIM_INFINITY else limit


def raise_open_files() -> None:
    """Have as many open files as this process may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def local_ports(root: Path = ROOT) -> range | None:
    """Ports that connections may come from, one each to one address; None where unknown."""
    words = _words(root / PORTS_FILE)
    return range(int(words[0]), int(words[1]) + 1) if len(words) == 2 else None


class CpuTimes(NamedTuple):
    """CPU time since the start, in clock ticks."""

    busy: int
    idle: int
    steal: int


def cpu_times(root: Path = ROOT) -> dict[str, CpuTimes]:
    """Of `cpu0` and each other core, and of all (`cpu`). Raises OSError, ValueError."""
    lines = (root / "proc/stat").read_text().splitlines()
    found = {}
    for name, *counts in (line.split() for line in lines if line.startswith("cpu")):
        user, nice, system, idle, iowait, irq, softirq, steal = map(int, counts[:8])
        found[name] = CpuTimes(user + nice + system + irq + softirq, idle + iowait, steal)
    return found


def clock_source(root: Path = ROOT) -> str:
    """What the kernel reads the time from."""
    source = "sys/devices/system/clocksource/clocksource0/current_clocksource"
    return " ".join(_words(root / source)) or "unknown"


# --- what a load wants ----------------------------------------------------------------------------


def load_processes(
    offer: Open | Closed, trial: Trial, *, targets: int, cores: int, files: int
) -> int:
    """How many load processes a stage gets: what `--workers` says, or by itself as follows.

    As many as keep each at most 60 % busy, when each request costs 75 us and each token 8 us, and
    each answer comes at 100 tokens/s; more, where the connections would be more than the open files
    of so many; but one core is left to others. Either way each target has as many as the others,
    and each process has a user.
    """
    at_once, loads = most_at_once(offer, trial.max_concurrency), _loads(trial, targets)
    rounds = (at_once or 1 << 60) * loads // targets
    if isinstance(trial.workers, int):
        rounds = min(rounds, -(-trial.workers // targets))
    else:
        tokens = mean_output_tokens(trial)
        busy = requests_per_s(offer, trial.max_concurrency, tokens / STREAM_TOKENS_PER_S)
        busy *= loads * (REQUEST_S + tokens * TOKEN_S)
        connections = (at_once or 0) * loads
        wanted = max(busy / BUSIEST, connections / max(1, files - SPARE_FILES))
        rounds = min(rounds, math.ceil(wanted / targets), (cores - 1) // targets)
    return max(1, rounds) * targets


def _loads(trial: Trial, targets: int) -> int:
    return targets if trial.each else 1


def most_at_once(offer: Open | Closed, cap: int | None) -> int | None:
    """The most requests in flight, None where only the server decides."""
    return offer.users if isinstance(offer, Closed) else cap


def requests_per_s(offer: Open | Closed, cap: int | None, answer_s: float) -> float:
    """The most requests that a load starts in a second, were each answer to take `answer_s`."""
    if isinstance(offer, Closed):
        return offer.users / (answer_s + offer.think_s)
    import numpy as np  # noqa: PLC0415 (the load process has no use for it)

    due, window_s = offer.due_ns, max(1.0, answer_s)
    ahead = np.searchsorted(due, due + round(window_s * 1e9), side="left") - np.arange(len(due))
    rate = float(ahead.max()) / window_s
    return rate if cap is None else min(rate, cap / answer_s)


def mean_output_tokens(trial: Trial) -> float:
    """About how long answers will be, in tokens. Raises BadInput."""
    if trial.output_tokens is None:
        return USUAL_TOKENS
    from servescope import lengths  # noqa: PLC0415 (likewise)

    law = lengths.parse("--output-tokens", trial.output_tokens)
    drawn = (lengths.at(law, 0, "output", k) for k in range(TOKENS_DRAWN))
    return sum(drawn) / TOKENS_DRAWN


# --- what is refused ------------------------------------------------------------------------------


def allow_connections(offer: Open | Closed, load: str, trial: Trial) -> None:
    """Raise the limit on open files; raises BadInput where the load wants more connections."""
    targets, (_, files) = max(1, len(trial.targets)), open_files()
    ports, cores = local_ports(), usable_cores()
    demand_connections(
        offer,
        load,
        trial,
        targets=targets,
        processes=load_processes(offer, trial, targets=targets, cores=cores, files=files),
        files=files,
        ports=None if ports is None or _by_path(trial) else len(ports),
    )
    # As far as it goes: requests of an open load that are slow to end hold ever more connections.
    raise_open_files()


def _by_path(trial: Trial) -> bool:
    """Whether targets are Unix sockets, which take no ports."""
    return any(target.partition(":")[0] in ("unix", "http+unix") for target in trial.targets)


def demand_connections(
    offer: Open | Closed,
    load: str,
    trial: Trial,
    *,
    targets: int,
    processes: int,
    files: int,
    ports: int | None,
) -> None:
    """Refuse a load whose users or cap want more connections than there can be. Raises BadInput.

    `ports` is how many there are to one address, None where they do not matter. An open load
    without a cap says no such number; what goes wrong then is in its requests' reasons.
    """
    if processes > 1 and processes * FILES_A_WORKER + SPARE_FILES > files:
        most = max(1, (files - SPARE_FILES) // FILES_A_WORKER)
        want = f"want at most {most}: a process may have {files:,} open files"
        raise BadInput("--workers", processes, want)
    at_once, loads = most_at_once(offer, trial.max_concurrency), _loads(trial, targets)
    if at_once is None:
        return
    field, value = ("--load", load) if isinstance(offer, Closed) else ("--max-concurrency", at_once)
    holders, who, more = processes, "a load process", "raise it (ulimit -Hn), or --workers"
    if not trial.targets:  # that one is a process under the same limit
        holders, who, more = 1, "the engine that is started here", "raise it (ulimit -Hn)"
    elif processes > 1:
        who = f"each of the {processes} load processes"
    fits = max(1, files - SPARE_FILES) * holders // loads
    why = f"{who} may have {files:,} open files: {more}"
    if ports is not None and (by_port := ports * targets // loads) < fits:
        fits = by_port
        why = f"there are {ports:,} ports for those to one address (net.ipv4.ip_local_port_range)"
    if at_once > fits:
        raise BadInput(field, value, f"want at most {fits:,} connections at once: {why}")


def own_words(error: OSError) -> str:
    """Why a connection was not even begun; where this machine's limit is why, what to raise."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        soft, _ = open_files()
        return f"{NO_FILES}: raise ulimit -n (a load process may have {soft:,} here)"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{NO_PORTS}: no local port is left; widen net.ipv4.ip_local_port_range"
    return str(error)
