"""A workload through Vidur, in its own environment and repository; `simulate.py` runs this.

Reads columns and limits as JSON; its last line is JSON: the seconds taken, and what is predicted.
"""

from __future__ import annotations

import csv
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from vidur import config
from vidur.simulator import Simulator


def simulation(asked: dict[str, Any], folder: Path) -> Simulator:
    """Of Llama-2 7B on an A100, with the scheduler that is most like vLLM's of today.

    Durations are predicted by its random forest, at one point of the grid that it would search for
    the best one, which takes an hour. It keeps its metrics, which it does by default, and draws no
    plots.
    """
    with (folder / "trace.csv").open("w") as file:
        columns = asked["arrivals_s"], asked["prompt_tokens"], asked["output_tokens"]
        rows = csv.writer(file)
        rows.writerow(["arrived_at", "num_prefill_tokens", "num_decode_tokens"])
        rows.writerows(zip(*columns, strict=True))
    return Simulator(
        config.SimulationConfig(
            cluster_config=config.ClusterConfig(
                replica_config=config.ReplicaConfig("meta-llama/Llama-2-7b-hf", device="a100"),
                replica_scheduler_config=config.SarathiSchedulerConfig(
                    batch_size_cap=asked["max_num_seqs"],
                    chunk_size=asked["max_num_batched_tokens"],
                    num_blocks=asked["kv_blocks"],
                ),
            ),
            request_generator_config=config.TraceRequestGeneratorConfig(
                trace_file=str(folder / "trace.csv"), max_tokens=asked["max_model_len"]
            ),
            execution_time_predictor_config=config.RandomForrestExecutionTimePredictorConfig(
                num_estimators=[250],
                max_depth=[16],
                min_samples_split=[2],
                prediction_max_batch_size=asked["max_num_seqs"],
                num_training_job_threads=1,
            ),
            metrics_config=config.MetricsConfig(
                enable_chrome_trace=False,
                store_plots=False,
                output_dir=str(folder),
                cache_dir=asked["cache"],
            ),
        )
    )


def main() -> None:
    """Run it once: its numbers of replicas and requests go on from one to the next."""
    asked = json.load(sys.stdin)
    with tempfile.TemporaryDirectory() as folder:
        began_s = time.perf_counter()
        simulator = simulation(asked, Path(folder))
        prepared_s = time.perf_counter()
        requests = [event._request for *_, event in simulator._event_queue]  # noqa: SLF001
        run_s = time.perf_counter()
        simulator.run()
        ended_s = time.perf_counter()
    found = {
        "prepare_s": prepared_s - began_s,
        "run_s": ended_s - run_s,
        "ttft_s": [one.prefill_completed_at - one.arrived_at for one in requests],
        "e2e_s": [one.completed_at - one.arrived_at for one in requests],
        "makespan_s": max(one.completed_at for one in requests) - asked["arrivals_s"][0],
    }
    print(json.dumps(found), flush=True)
    os._exit(0)  # else it writes its metrics and draws them


if __name__ == "__main__":
    main()
