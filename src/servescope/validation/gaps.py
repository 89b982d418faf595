"""Inter-token times of a burst: every token's time, which a replay does not keep."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from servescope.engine import FS, Work
from servescope.engine.front_end import FrontEnd

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from servescope.engine.deployment import Deployment


def inter_token_times(
    deployment: Deployment, prompt_tokens: Iterable[int], output_tokens: Iterable[int]
) -> NDArray[np.float64]:
    """Seconds from each token of each answer to its next one, of requests that all come at once.

    One step at a time, so for thousands of requests, not for millions.
    """
    engine, front_end = deployment.engine(), FrontEnd(deployment.front_end)
    for prompt, output in zip(map(int, prompt_tokens), map(int, output_tokens), strict=True):
        front_end.take_in(0)
        engine.submit(Work(prompt=(), prompt_tokens=prompt, output_tokens=output))
    now, out, found = front_end.out(0), dict[Work, int](), list[int]()
    while (step := engine.step()) is not None:
        now += step.duration_fs
        opened = {work for work in step.begun if work not in out}
        out |= {work: front_end.open(now) for work in step.begun if work in opened}
        went = front_end.out(now)
        for work in step.made:
            if work not in opened:
                found.append(went - out[work])
                out[work] = went
        for work in step.finished:
            front_end.charge(now, work.output_tokens)
    return np.array(found) / FS
