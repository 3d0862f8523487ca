"""Runs on a Ray cluster of two nodes, one of them lost half-way: do all end in the bytes of a local run?

    python -m benchmarks.ray_kills --runs 10

In every second run the node's processes are not killed but stopped (SIGSTOP): no connection breaks, nothing is said.
"""

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from benchmarks.kills import make_data
from mal.errors import MalError
from mal.runtime.label import label_dataset
from mal.runtime.report import LabelReport

NODE: dict[str, Any] = {"num_cpus": 2, "object_store_memory": 80_000_000}
# Ray's own sense of a node that says nothing, in seconds instead of a minute.
QUICK = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000, "health_check_failure_threshold": 5}


def family(parent: int) -> list[int]:
    """A process and all that came from it."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=False)
    return [parent, *(pid for child in listed.stdout.split() for pid in family(int(child)))]


def signal_node(node: Any, number: int) -> None:
    raylets = [info.process.pid for info in node.all_processes["raylet"]]
    for pid in [pid for raylet in raylets for pid in family(raylet)]:
        os.kill(pid, number)


def two_nodes(tries: int = 20) -> tuple[Cluster, Any]:
    """A cluster and its second node; Ray gives a node 30 s to start, which a busy machine may miss."""
    while True:
        cluster = Cluster()
        try:
            cluster.add_node(**NODE, include_dashboard=False, _system_config=QUICK)
            return cluster, cluster.add_node(**NODE)
        except Exception:
            cluster.shutdown()
            tries -= 1
            if not tries:
                raise


def run_once(boxes: Path, output: Path, how: int, after: float) -> tuple[LabelReport, bool]:
    """Label on a fresh cluster; its second node gets the signal `how` so many seconds after the first result."""
    cluster, second = two_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    over, struck = threading.Event(), threading.Event()

    def strike() -> None:
        while not any(Path(f"{output}.journal").glob("*.seg")):
            time.sleep(0.01)
        if not over.wait(after):
            signal_node(second, how)
            struck.set()

    striker = threading.Thread(target=strike, daemon=True)
    striker.start()
    try:
        # Where the system continues the stopped raylet, but not the actor, Ray sees a healthy node: the crew tells.
        report = label_dataset(boxes, output=output, device="cpu", batch=4, workers=2, ray="", session_timeout=120)
        over.set()
        striker.join()
        return report, struck.is_set()
    finally:
        if struck.is_set() and how == signal.SIGSTOP:
            signal_node(second, signal.SIGCONT)
        ray.shutdown()
        cluster.shutdown()


def prove(runs: int, seed: int = 0) -> dict[str, object]:
    """Lose a node in so many runs; counts of what happened."""
    luck = random.Random(seed)
    counts = dict.fromkeys(("lost_within_the_run", "workers_lost", "failed", "different"), 0)
    slowest = 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        boxes, output = make_data(folder), folder / "out.json"
        started = time.monotonic()
        label_dataset(boxes, output=output, device="cpu", batch=4, workers=2)
        whole, seconds = output.read_bytes(), time.monotonic() - started
        for run in range(runs):
            how = (signal.SIGKILL, signal.SIGSTOP)[run % 2]
            output.unlink(missing_ok=True)
            started = time.monotonic()
            try:
                report, struck = run_once(boxes, output, how, luck.uniform(0, seconds))
            except MalError as error:
                print(f"run {run + 1}: {error}", file=sys.stderr)
                counts["failed"] += 1
                continue
            slowest = max(slowest, time.monotonic() - started)
            counts["lost_within_the_run"] += struck
            counts["workers_lost"] += report.worker_deaths
            counts["different"] += output.read_bytes() != whole
            print(f"run {run + 1} of {runs}, {how.name}: {counts}", file=sys.stderr, flush=True)
    return {"runs": runs, **counts, "local_seconds": round(seconds, 1), "slowest_seconds": round(slowest, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = prove(options.runs, options.seed)
    print(json.dumps({**found, "ray": ray.__version__, "python": platform.python_version()}))
    sys.exit(bool(found["different"] or found["failed"]))


if __name__ == "__main__":
    main()
