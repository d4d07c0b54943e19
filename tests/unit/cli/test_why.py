"""`truthgpt why` and `truthgpt logs`: a service's answers, and files as Ray keeps them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli_service import (
    Answer,
    envelope,
    environment,
    model_list,
    run_cli,
    serve,
    write_run,
)
from tests.support.terminal import on_terminal
from truthgpt_serve.cli._service.session import Follower, tail
from truthgpt_serve.cli._service.traces import find_traceback
from truthgpt_serve.cluster.ports import free_port
from truthgpt_serve.cluster.start_errors import ENDED

ERROR = """\
:job_id:01000000
:actor_name:ServeReplica:bad:ModelReplica
INFO 2026-11-26 09:29:58,268 bad_ModelReplica 650pj2cj -- Started initializing replica.
INFO 2026-11-26 09:29:58,324 bad_ModelReplica 650pj2cj -- Traceback (most recent call last):
INFO 2026-11-26 09:29:58,324 bad_ModelReplica 650pj2cj --   File "mine.py", line 9, in load
INFO 2026-11-26 09:29:58,324 bad_ModelReplica 650pj2cj --     open("\x1b[31mweights.bin\x1b[0m")
INFO 2026-11-26 09:29:58,324 bad_ModelReplica 650pj2cj -- FileNotFoundError: weights.bin
INFO 2026-11-26 09:29:58,809 bad_ModelReplica 650pj2cj -- Graceful shutdown complete.
"""
CRASH = """\
*** SIGSEGV received at time=1795685398 on cpu 0 ***
Fatal Python error: Segmentation fault

Stack (most recent call first):
  File "mine.py", line 7 in load

Extension modules: numpy._core
"""
ENGINE = """\
(EngineCore pid=7) ERROR 11-26 09:30:12 [core.py:133] Traceback (most recent call last):
(EngineCore pid=7) ERROR 11-26 09:30:12 [core.py:133]   File "core.py", line 1, in run
(EngineCore pid=7) ERROR 11-26 09:30:12 [core.py:133] ValueError: too little memory
(EngineCore pid=7) Process EngineCore:
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with the files of a service that this process runs."""
    run = tmp_path / ".run"
    run.mkdir(0o755)
    logs = run / "private" / "ray" / "session_latest" / "logs"
    logs.mkdir(parents=True)
    (logs / "serve").mkdir()
    return tmp_path


def logs_of(folder: Path) -> Path:
    return folder / ".run" / "private" / "ray" / "session_latest" / "logs"


def write_log(folder: Path, pid: int, text: str, end: str = "err") -> Path:
    path = logs_of(folder) / f"worker-0602daa9-01000000-{pid}.{end}"
    path.write_text(text)
    return path


def answers(status: str, replicas: int = 0, **more: Any) -> dict[str, Any]:
    own = {"status": status, "num_running_replicas": replicas}
    card = {"id": "bad", "created": int(time.time()) - 60, "status": status, "card": {}, **more}
    return {
        "/v1/models/bad": Answer(card),
        "/v1/models": model_list("bad", "story"),
        "/ready": Answer({"models": {"bad": own}}, 503),
    }


def test_a_model_whose_load_raises(folder: Path) -> None:
    write_log(folder, 101, ERROR)
    failed = answers("DEPLOY_FAILED", last_error="FileNotFoundError: weights.bin")
    with serve(failed) as service:
        write_run(folder / ".run", address=service.url)
        done = run_cli("why", "bad", cwd=folder)
        program = run_cli("why", "bad", "--json", cwd=folder)
    assert done.returncode == 1
    first, second, *_ = done.stdout.splitlines()
    assert first.startswith("bad failed to start (DEPLOY_FAILED), ")
    assert second == "cause: FileNotFoundError: weights.bin"
    assert '\n  Traceback (most recent call last):\n    File "mine.py", line 9' in done.stdout
    assert "\x1b" not in done.stdout
    assert f"looked at: {service.url}/v1/models/bad" in done.stdout
    found = json.loads(program.stdout)
    assert (found["runs"], found["state"]) == (False, "DEPLOY_FAILED")
    assert found["traceback"][-1] == "FileNotFoundError: weights.bin"
    assert any("worker-0602daa9-01000000-101.err" in place for place in found["looked_at"])


def test_a_faulty_deployment_beside_replicas_that_run_says_so(folder: Path) -> None:
    with serve(answers("DEPLOY_FAILED", 2, last_error="args: engin: unknown field")) as service:
        write_run(folder / ".run", address=service.url)
        done = run_cli("why", "bad", cwd=folder)
    assert done.returncode == 1
    assert done.stdout.splitlines()[0].endswith(
        " after it was deployed; 2 replicas can still answer"
    )


def test_a_traceback_in_serves_own_log(folder: Path) -> None:
    write_log(folder, 101, ERROR.partition("INFO")[0])
    text = "INFO" + ERROR.partition("INFO")[2]
    (logs_of(folder) / "serve" / "replica_bad_ModelReplica_650pj2cj.log").write_text(text)
    (logs_of(folder) / "serve" / "replica_bad_2_ModelReplica_x.log").write_text("of another\n")
    with serve(answers("DEPLOY_FAILED", last_error="FileNotFoundError: weights.bin")) as service:
        write_run(folder / ".run", address=service.url)
        done = run_cli("why", "bad", cwd=folder)
        logs = run_cli("logs", "bad", cwd=folder)
    assert '\n  Traceback (most recent call last):\n    File "mine.py", line 9' in done.stdout
    assert "FileNotFoundError: weights.bin" in logs.stdout
    assert "of another" not in logs.stdout


def test_a_service_that_is_starting_is_no_fault_of_files(folder: Path) -> None:
    (folder / ".run" / "service.log").write_text("OSError: No space left on device\n")
    missing = Answer(envelope("no replica takes requests", "model_unavailable"), 503)
    with serve({"/v1/models/bad": missing}) as service:
        write_run(folder / ".run", address=service.url)
        done = run_cli("why", "bad", cwd=folder)
    assert "cause: the service is starting: no replica takes requests" in done.stdout
    assert "No space" not in done.stdout


def test_a_service_that_was_stopped_had_no_error(folder: Path) -> None:
    text = "ValueError: of a request\n2026 INFO -- Got KeyboardInterrupt, shutting down...\nbye\n"
    (folder / ".run" / "service.log").write_text(text)
    url = f"http://127.0.0.1:{free_port()}"
    done = run_cli("why", "bad", env={"TRUTHGPT_URL": url}, cwd=folder)
    assert "; the last run was stopped" in done.stdout
    assert "ValueError" not in done.stdout


def test_a_model_whose_process_crashes(folder: Path) -> None:
    write_log(folder, 101, f"{ERROR.partition('INFO')[0]}{CRASH}")
    deaths = logs_of(folder).parent / "truthgpt-deaths" / "bad" / "history.json"
    deaths.parent.mkdir(parents=True)
    cause = "it was ended by SIGSEGV (signal 11, a segmentation fault), in load"
    deaths.write_text(json.dumps({"deaths": [{"at": 1.0, "cause": cause}] * 2}))
    # The third start only says that two have died.
    refused = "INFO" + ERROR.partition("INFO")[2]
    (logs_of(folder) / "serve" / "replica_bad_ModelReplica_650pj2cj.log").write_text(refused)
    with serve(answers("DEPLOY_FAILED", last_error=ENDED)) as service:
        write_run(folder / ".run", address=service.url)
        done = run_cli("why", "bad", cwd=folder)
    assert f"cause: the model's process ended while it started: {cause}\n" in done.stdout
    assert done.stdout.count(f"a process died: {cause}") == 1
    assert "Fatal Python error: Segmentation fault" in done.stdout
    assert 'File "mine.py", line 7 in load' in done.stdout
    assert "Extension modules" not in done.stdout


def test_known_failures_come_with_what_helps(folder: Path) -> None:
    write_log(folder, 101, ERROR.replace("FileNotFoundError: weights.bin", "MemoryError: 9 GiB"))
    with serve(answers("DEPLOY_FAILED", last_error="MemoryError: 9 GiB")) as service:
        write_run(folder / ".run", address=service.url)
        done = run_cli("why", "bad", cwd=folder)
    assert "what to do: there is too little memory" in done.stdout


def test_a_model_that_waits_for_resources(folder: Path) -> None:
    waits = "1 replica waits for resources: each needs 40 CPU (the cluster has 2, 0.4 free)"
    with serve(answers("DEPLOYING", waits_for=waits)) as service:
        write_run(folder / ".run", address=service.url)
        done = run_cli("why", "bad", cwd=folder)
    assert done.returncode == 1
    assert f"waits for: {waits}" in done.stdout
    assert "what to do: give it less (`hardware`)" in done.stdout


@pytest.mark.parametrize("state", ["DEPLOYING", "UNHEALTHY"])
def test_what_a_class_that_loads_has_printed_is_shown(folder: Path, state: str) -> None:
    title = "ray::ServeReplica:bad:ModelReplica"
    loads = subprocess.Popen(
        [title, "-c", "input()"], executable=sys.executable, stdin=subprocess.PIPE
    )
    try:
        write_log(folder, loads.pid, ":actor_name:ServeReplica:bad:ModelReplica\n")
        text = "INFO bad_ModelReplica x -- downloading...\n\n"
        (logs_of(folder) / "serve" / "replica_bad_ModelReplica_x.log").write_text(text)
        with serve(answers(state)) as service:
            write_run(folder / ".run", address=service.url)
            done = run_cli("why", "bad", cwd=folder)
    finally:
        loads.communicate()
    assert "it said last:\n  INFO bad_ModelReplica x -- downloading..." in done.stdout


@pytest.mark.parametrize(("replicas", "text"), [(2, "runs: 2 replicas"), (0, "scaled to zero")])
def test_a_model_that_runs_exits_with_0(folder: Path, replicas: int, text: str) -> None:
    with serve(answers("RUNNING", replicas)) as service:
        done = run_cli("why", "bad", env=service.env(), cwd=folder)
    assert done.returncode == 0, done.stderr
    assert text in done.stdout


def test_another_name_leads_to_its_model(folder: Path) -> None:
    write_log(folder, 101, ERROR)
    card = answers("DEPLOY_FAILED", alias_of="bad")["/v1/models/bad"]
    with serve({**answers("DEPLOY_FAILED"), "/v1/models/org/Bad": card}) as service:
        write_run(folder / ".run", address=service.url)
        done = run_cli("why", "org/Bad", cwd=folder)
    assert done.stdout.startswith("org/Bad (served by bad) failed to start")
    assert "FileNotFoundError" in done.stdout


def test_a_model_that_does_not_exist(folder: Path) -> None:
    missing = Answer(envelope("no such model", "model_not_found", "model"), 404)
    with serve({**answers("RUNNING"), "/v1/models/stroy": missing}) as service:
        done = run_cli("why", "stroy", env=service.env(), cwd=folder)
    assert done.returncode == 1
    assert "did you mean story?" in done.stderr


def test_a_service_that_does_not_run_is_told_from_its_files(folder: Path) -> None:
    (folder / ".run" / "service.log").write_text(
        "[serve] starting\nray.exceptions.RaySystemError: OSError: No space left on device\n"
    )
    (folder / "configs").mkdir()
    (folder / "configs" / "serve.yaml").write_text("applications: [{name: bad}]\n")
    url = f"http://127.0.0.1:{free_port()}"
    done = run_cli("why", "bad", env={"TRUTHGPT_URL": url}, cwd=folder)
    assert done.returncode == 1
    assert "start it with `make serve`" in done.stdout
    assert "No space left on device" in done.stdout
    assert "what to do: the disk is full" in done.stdout
    assert "fault: configs/serve.yaml" in done.stdout
    assert ".run/service.log" in done.stdout


def test_another_server_says_nothing_of_models() -> None:
    with serve({"/v1/models/bad": Answer({"id": "bad"})}) as service:
        done = run_cli("why", "bad", env=service.env())
    assert done.returncode == 1
    assert "does not tell models' states" in done.stderr


def test_a_model_that_is_taken_out_is_said_to_be() -> None:
    routes = {"/v1/models/bad": Answer({"id": "bad"}), "/ready": Answer({"models": {}})}
    with serve(routes) as service:
        done = run_cli("why", "bad", env=service.env())
    assert done.returncode == 1
    assert "DELETING" in done.stdout
    assert "it is being taken out of the service" in done.stdout


# -- logs


def test_logs_of_a_model_that_does_not_exist(folder: Path) -> None:
    write_log(folder, 101, ERROR)
    models = Answer({"data": [{"id": "bad"}]})
    with serve({"/v1/models": models}) as service:
        env = service.env(RAY_TMPDIR=str(folder / ".run" / "private"))
        done = run_cli("logs", "bat", env=env, cwd=folder)
    assert done.returncode == 1
    assert "there is no model 'bat': did you mean bad?" in done.stderr


def test_the_output_of_the_last_process_is_printed(folder: Path) -> None:
    old = write_log(folder, 101, ERROR.replace("Started", "Old: started"))
    os.utime(old, (1, 1))
    new = write_log(folder, 102, ERROR)
    write_log(folder, 103, ERROR.replace(":bad:", ":bad-2:"))
    out = write_log(
        folder, 102, ERROR.partition("INFO")[0] + "\x1b[1mfrom the engine\x1b[0m\n", "out"
    )
    done = run_cli("logs", "bad", cwd=folder)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].endswith("Started initializing replica.")
    assert lines[-1] == "from the engine"
    assert "Old" not in done.stdout
    assert ":actor_name:" not in done.stdout
    assert done.stderr.splitlines() == [
        f"==> {path.relative_to(folder)} <==" for path in (new, out)
    ]
    few = run_cli("logs", "bad", "-n", "1", "--all", cwd=folder)
    assert len(few.stdout.splitlines()) == 3


def test_both_files_of_a_process_are_read_where_one_begins_with_its_name(folder: Path) -> None:
    """What an engine prints may stand before Ray's mark."""
    write_log(folder, 102, ERROR)
    write_log(folder, 102, ENGINE * 9 + ERROR.partition("INFO")[0], "out")
    done = run_cli("logs", "bad", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "(EngineCore pid=7) Process EngineCore:" in done.stdout


def test_lines_are_followed_until_ctrl_c(folder: Path) -> None:
    path = write_log(folder, 102, ERROR)
    # A process of this name, as Ray titles the model's.
    program = (
        "import setproctitle, sys, time; "
        "setproctitle.setproctitle('ray::ServeReplica:bad:ModelReplica'); "
        "print('titled', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-m", "truthgpt_serve.cli", "logs", "bad", "-f", "-n", "1"]
    env = environment()
    with (
        on_terminal(*command, env=env, cwd=folder) as shown,
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as later,
    ):
        shown.wait_for("Graceful shutdown complete.")
        with path.open("a") as file:
            file.write("one more line\nhalf a")
            file.flush()
            shown.wait_for("one more line")
            file.write(" line\n")
        shown.wait_for("half a line")
        assert later.stdout is not None
        assert later.stdout.readline() == b"titled\n"
        write_log(folder, later.pid, f"{ERROR.partition('INFO')[0]}a new process\n")
        shown.wait_for("a new process")
        later.kill()
        shown.type("\x03")
        assert shown.end() == 0


def test_no_files_are_told_with_what_helps(folder: Path, tmp_path: Path) -> None:
    done = run_cli("logs", "nosuch", cwd=folder)
    assert done.returncode == 1
    assert "no process of 'nosuch' has printed anything; looked at .run/private" in done.stderr
    done = run_cli("logs", "bad", env={"TRUTHGPT_URL": "https://models.example"}, cwd=folder)
    assert done.returncode == 1
    assert "the service is on another machine" in done.stderr
    # What runs there is not what ran here.
    url = f"http://127.0.0.1:{free_port()}"
    write_log(folder, 102, ERROR)
    done = run_cli("logs", "bad", env={"TRUTHGPT_URL": url}, cwd=folder)
    assert done.returncode == 1
    by_hand = {"TRUTHGPT_URL": url, "RAY_TMPDIR": str(folder / ".run" / "private")}
    assert "FileNotFoundError" in run_cli("logs", "bad", env=by_hand, cwd=folder).stdout


def test_of_a_large_file_only_the_end_is_read(tmp_path: Path) -> None:
    path = tmp_path / "large.err"
    path.write_bytes(b"".join(b"%d %s\n" % (number, b"x" * 1000) for number in range(8000)))
    lines, position = tail(path, 3)
    assert [line.split()[0] for line in lines] == ["7997", "7998", "7999"]
    assert position == path.stat().st_size
    assert tail(path, 0)[0] == []
    follower = Follower(path, position)
    assert list(follower.read()) == []
    path.write_bytes(b"anew\n")  # it was rotated
    assert list(follower.read()) == ["anew"]
    path.unlink()
    assert list(follower.read()) == []


def test_the_last_traceback_is_found_whoever_logged_it() -> None:
    assert find_traceback([*ERROR.splitlines(), *ENGINE.splitlines()]) == [
        "Traceback (most recent call last):",
        '  File "core.py", line 1, in run',
        "ValueError: too little memory",
    ]
    assert find_traceback(["nothing", "of the kind"]) == []
    deep = ["Traceback (most recent call last):", *["  frame"] * 500, "RecursionError: deep"]
    assert len(find_traceback(deep)) == 61
    assert find_traceback(deep)[-1] == "RecursionError: deep"
    assert find_traceback(deep[:-1])  # it was cut off
