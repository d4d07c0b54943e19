"""Kills and stops each kind of process of a service under load, and fills its disk.

Command: `python -m benchmarks.chaos`, or `... replica router --how kill`. Starts a service as `make
serve` does, with 2 routers and 2 replicas of a model that answers slowly, keeps streams and unary
requests going on all ways, and strikes one kind of process after the other with SIGKILL, and with
SIGSTOP for 5 s. Prints which requests the process held, which of them failed, which others did
(there must be none), and how long it took until all answers were good again; writes
`benchmarks/results/chaos.json`. Exits with 1 if a request failed elsewhere, or if not all was well
again after 7 minutes. What else the machine does lengthens the times: its load of the last 15
minutes is noted.

What carries everything (HAProxy) holds all requests, and so does what ends the service on one node:
the dashboard agent, the raylet and the GCS, after whose death `make serve` starts it all again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from benchmarks.chaos.disk import SmallDisk
from benchmarks.chaos.load import Load
from benchmarks.chaos.parts import ENDS_SERVICE, KINDS
from benchmarks.chaos.service import SMALL, Service, running
from benchmarks.chaos.strike import Strike, Target
from benchmarks.local_cluster import model_application
from benchmarks.sides import ROOT
from deployments.vllm.tiny_model import make_tiny_llama

DISK = "disk"
USAGE_S = 8.0
"""After which all usage is written."""
WARM_S = 5.0


def plan(names: list[str], hows: list[str]) -> list[tuple[str, str]]:
    """Returns kinds and signals in turn, what ends the service last."""
    found = [
        (kind.name, how)
        for ends in (False, True)
        for how in hows
        for kind in KINDS
        if kind.name in names and (ends == (kind.name in ENDS_SERVICE and how == "kill"))
    ]
    return [*([(DISK, "fill")] if DISK in names else []), *found]


def run(
    service: Service, load: Load, disk: SmallDisk | None, steps: list[tuple[str, str]]
) -> list[Strike]:
    """Strikes in turn; prints a line for each."""
    kinds = {kind.name: kind for kind in KINDS}
    strikes = []
    print(f"{'kind':<16} how   held failed elsewhere away recovery back")
    for name, how in steps:
        target = Target(service.run_id, service.notes, load)
        if name == DISK:
            if disk is None:
                continue
            strike = target.fill(DISK, disk.fill, disk.free)
        else:
            strike = target.strike(kinds[name], how)
        strikes.append(strike)
        row = strike.to_dict()
        print(
            f"{name:<16} {how:<5} {row['held']:>4} {row['failed_held']:>6} "
            f"{row['failed_elsewhere']:>9} {row['failed_while_away']:>4} "
            f"{row['recovery_s']:>6} s {row['back_s']:>4} s  {row['faults'] or ''}",
            flush=True,
        )
        if not strike.is_well:
            print("not all is well again: the rest is left out")
            break
    return strikes


def usage_of(service: Service) -> dict[str, Any]:
    """Returns what the service has counted for the key."""
    answer = httpx.get(
        f"{service.url}/v1/usage?group_by=key",
        headers={"authorization": f"Bearer {service.key}"},
        timeout=60,
    )
    answer.raise_for_status()
    rows: dict[str, dict[str, Any]] = {row["key"]: row for row in answer.json()["data"]}
    return rows["load"]


def more_models(folder: Path, *, transformers: bool) -> list[dict[str, Any]]:
    """Returns a model of transformers beside, which must go on too."""
    if not transformers:
        return []
    weights = str(make_tiny_llama(folder / "llama"))
    config = {"model": {"family": "hf-transformers", "name_or_path": weights}, "hardware": SMALL}
    return [model_application("writer", config)]


def main() -> int:
    """Runs the program; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [DISK, *(kind.name for kind in KINDS)]
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(names)}")
    parser.add_argument("--how", nargs="*", default=["kill", "stop"], choices=["kill", "stop"])
    parser.add_argument("--clients", type=int, default=6, help="of each of the three ways")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    chosen = options.kinds or names
    if unknown := set(chosen) - set(names):
        parser.error(f"no such kinds: {', '.join(sorted(unknown))}")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos")))
        disk = None
        if DISK in chosen:
            try:
                disk = SmallDisk(folder)
                stack.callback(disk.close)
            except OSError as error:
                print(f"the disk is not filled: {error}")
        service = stack.enter_context(running(folder, []))
        with Load(service.url, "words", num_clients=options.clients, key=service.key) as load:
            time.sleep(WARM_S)
            strikes = run(service, load, disk, plan(chosen, options.how))
        time.sleep(USAGE_S)
        good = sum(not sent.fault for sent in load.requests)
        counted = usage_of(service)["requests"] if strikes[-1].is_well else None
    result = {
        "cpus": os.cpu_count(),
        "load_average": round(os.getloadavg()[2], 1),
        "requests": len(load.requests),
        "good": good,
        "counted": counted,
        "failed_elsewhere": sum(strike.failed_elsewhere for strike in strikes),
        "strikes": [strike.to_dict() for strike in strikes],
    }
    print({key: value for key, value in result.items() if key != "strikes"})
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "chaos.json").write_text(json.dumps(result, indent=1) + "\n")
    is_well = all(strike.is_well for strike in strikes)
    return 0 if is_well and not result["failed_elsewhere"] else 1


if __name__ == "__main__":
    sys.exit(main())
