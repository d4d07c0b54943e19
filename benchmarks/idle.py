"""What a service costs without requests: CPU, wake-ups and memory of each of its processes.

Command: `python -m benchmarks.idle`, beside a service that `make serve` has made ready. Memory is
PSS, in which what processes share is divided among them; a core's share is counted over
`--seconds`. Both are right beside other work on the machine, but caches and clocks are not the
same then: run it alone. An idle service is timers, and what a wake-up costs differs between
machines by five times: how many there are is counted too, and what one costs a process that does
nothing else. Writes `benchmarks/results/idle.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.sides import ROOT
from truthgpt_serve.cluster.processes import Process, find_run, read_process
from truthgpt_serve.cluster.service.run_file import RunFile

MODEL = "models and engines"
ELSE = "everything else"
ROLES = (
    (r"ray_worker\.py --fork-server", "fork server"),
    (r"ray::ServeReplica:router:", "router"),
    (r"ray::ServeReplica:ui:", "playground"),
    (r"ray::ServeReplica:(\w[\w-]*):", "model {}"),
    (r"ray::(ServeController|ProxyActor|HAProxyManager|DashboardAgent|RuntimeEnvAgent|IDLE)", "{}"),
    (r"ray-dashboard-(\w+?)-\d", "dashboard {}"),
    (r"/dashboard/dashboard\.py", "dashboard"),
    (r"/(log_monitor|monitor)\.py", "{}"),
    (r"/(gcs_server|raylet|haproxy) ", "{}"),
    (r"scripts/(serve_run|serve)\.py", "{}"),
    (r"multiprocessing\.(\w+)", "multiprocessing {}"),
    (r"-m truthgpt_serve\.grammar\.worker", "grammar compiler"),
    (r"VLLM::", "engine"),
)
"""Patterns of command lines and what is called so, the first that is found."""


SLEEP_S, NUM_SLEEPS = 0.01, 200


@dataclass(frozen=True, slots=True)
class Cost:
    """One process.

    Attributes:
        kind: What it is.
        core: Its share of one core.
        wakeups: How many times a second its threads begin to run.
        pss_bytes: Its memory.
        group: `MODEL` or `ELSE`.
    """

    kind: str
    core: float
    wakeups: float
    pss_bytes: int
    group: str


def kind_of(command: str) -> str:
    """Returns what a process is, by its command line."""
    for pattern, name in ROLES:
        if found := re.search(pattern, command):
            return name.format(*found.groups())
    return command[:60]


def is_model(process: Process, by_pid: dict[int, Process]) -> bool:
    """Returns whether a process is a model's replica or was started by one."""
    present: Process | None = process
    while present is not None:
        if kind_of(present.command).startswith("model "):
            return True
        present = by_pid.get(present.parent)
    return False


def cpu_s(pid: int) -> float | None:
    """Returns the CPU time that a process has taken; None when it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def num_wakeups(pid: int) -> int:
    """Returns how many times the threads of a process have begun to run."""
    found = 0
    for thread in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            found += int(thread.read_text().split()[2])
    return found


def wakeup_us() -> float:
    """Returns the CPU microseconds that one wake-up costs this process, which does nothing else."""
    before_s = time.process_time()
    for _ in range(NUM_SLEEPS):
        time.sleep(SLEEP_S)
    return 1e6 * (time.process_time() - before_s) / NUM_SLEEPS


def pss_bytes(pid: int) -> int:
    """Returns the memory of a process, with its share of what it has in common with others."""
    found = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def measure(processes: Iterable[Process], duration_s: float) -> list[Cost]:
    """Returns what each process costs, the most expensive first; leaves out what ends meanwhile."""
    by_pid = {process.pid: process for process in processes}
    before, started_s = {pid: cpu_s(pid) for pid in by_pid}, time.monotonic()
    begun = {pid: num_wakeups(pid) for pid in by_pid}
    time.sleep(duration_s)
    took_s = time.monotonic() - started_s
    costs = []
    for pid, process in by_pid.items():
        first, last = before[pid], cpu_s(pid)
        if first is None or last is None:
            continue
        group = MODEL if is_model(process, by_pid) else ELSE
        try:
            memory = pss_bytes(pid)
        except OSError:
            continue
        core, wakeups = (last - first) / took_s, (num_wakeups(pid) - begun[pid]) / took_s
        costs.append(Cost(kind_of(process.command), core, wakeups, memory, group))
    return sorted(costs, key=lambda cost: (-cost.core, cost.kind))


def summarize(costs: Iterable[Cost], duration_s: float) -> dict[str, object]:
    """Returns the report: each process, and the sums of both groups."""
    costs = list(costs)
    sums = {
        group: {
            "processes": sum(cost.group == group for cost in costs),
            "core_percent": round(100 * sum(c.core for c in costs if c.group == group), 1),
            "wakeups_a_second": round(sum(c.wakeups for c in costs if c.group == group)),
            "pss_mb": round(sum(c.pss_bytes for c in costs if c.group == group) / 2**20),
        }
        for group in (MODEL, ELSE)
    }
    rows = [
        [c.kind, c.group, round(100 * c.core, 2), round(c.wakeups), round(c.pss_bytes / 2**20)]
        for c in costs
    ]
    load, wakeup = round(os.getloadavg()[0], 1), round(wakeup_us())
    head = {"seconds": duration_s, "load": load, "wakeup_us": wakeup}
    return {**head, "sums": sums, "each": rows}


def main() -> None:
    """Measures the service of a run's folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run-dir", type=Path, default=ROOT / ".run")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    state = RunFile(options.run_dir).read()
    if state is None:
        raise SystemExit(f"no service in {options.run_dir}: start one with `make serve`")
    supervisor = read_process(state["pid"])
    processes = [*find_run(state["run_id"]), *([supervisor] if supervisor else [])]
    report = summarize(measure(processes, options.seconds), options.seconds)
    rows = report.pop("each")
    assert isinstance(rows, list)
    for kind, group, core, wakeups, memory in rows:
        mark = "" if group == ELSE else " *"
        print(f"{core:6.2f} %  {wakeups:5} wake-ups/s  {memory:6} MB  {kind}{mark}")
    print(f"* {MODEL}\n{json.dumps(report, indent=1)}")
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    text = json.dumps(report, indent=1).removesuffix("\n}") + f',\n "each": [\n  {lines}\n ]\n}}\n'
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "idle.json").write_text(text)


if __name__ == "__main__":
    main()
