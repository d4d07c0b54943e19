"""`truthgpt train` as a user runs it: stopped, killed, with two workers, and its adapter served."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from safetensors.numpy import load_file

from benchmarks.local_cluster import Host, LocalCluster
from tests.serve.listeners import Listener, find_listeners
from tests.serve.training_command import (
    TIMEOUT_S,
    TRUTHGPT,
    command,
    make_folder,
    run_command,
    wait_until_step,
    write_config,
)
from tests.serve.two_nodes import Network, can_make_networks
from tests.serve.vllm_process import make_config, serve
from tests.support.references import greedy_texts
from tests.support.training_runs import losses
from truthgpt_serve.cluster.processes import create_run_environment, create_run_id, end_run
from truthgpt_serve.training.events import read_events
from truthgpt_serve.training.launch import ADDRESS_VARIABLE
from truthgpt_serve.training.run_folder import checkpoints

pytestmark = pytest.mark.timeout(900)

RAY_ENV = Path(__file__).resolve().parents[2] / "configs" / "ray.env"
PROMPTS = ["Ada finds", "The clock", "Dan"]
GREEDY_TOKENS = 12
LOOK_S = 0.2
FAIL_S = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="module")
def ray() -> Iterator[dict[str, str]]:
    """Variables that lead to one Ray, for runs with which none of their own is tested."""
    gloo = {"GLOO_SOCKET_IFNAME": "lo"}
    with LocalCluster(RAY_ENV, env=gloo, host=Host(num_cpus=2)) as cluster:
        yield {**cluster.env, ADDRESS_VARIABLE: f"127.0.0.1:{cluster.ray_port}"}


RUN: dict[str, Any] = {"epochs": 6, "checkpoint_every": 3, "keep_checkpoints": 2}


@pytest.fixture(scope="module")
def whole(folder: Path, ray: dict[str, str]) -> Path:
    """A run from beginning to end."""
    output = run_command(folder, str(write_config(folder, "whole", training=RUN)), ray=ray)
    assert "steps    72; 12 an epoch, 5 to warm up" in output
    assert "1 worker on CPU" in output
    assert "  name_or_path: " in output
    return folder / "runs" / "whole"


def same_weights(one: Path, two: Path) -> bool:
    first, second = (load_file(run / "model" / "model.safetensors") for run in (one, two))
    return all((weight == second[name]).all() for name, weight in first.items())


def test_stopped_killed_and_resumed_equals_uninterrupted(
    folder: Path, whole: Path, ray: dict[str, str]
) -> None:
    config = str(write_config(folder, "cut", training={**RUN, "checkpoint_every": 7}))
    run = folder / "runs" / "cut"
    with command(folder, config) as process:
        wait_until_step(process, run, 3)
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130, output
    assert "stopped; go on with --resume" in output
    (saved,) = checkpoints(run)
    assert saved.name == f"step-{len(losses(run))}"
    assert not (run / "model").exists()

    with command(folder, config, "--resume") as process:
        wait_until_step(process, run, 17)
        started = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        assert not (run / "model").exists()
        output = run_command(folder, config, "--resume", ray=ray)
        done = re.search(r"steps    72, (\d+) of them done", output)
        assert done is not None, output
        assert int(done[1]) in range(14, 72, 7)
        assert losses(run) == losses(whole)
        assert same_weights(run, whole)
        assert "this run is finished" in run_command(folder, config, "--resume")
        # What Ray had started has ended by itself: nothing has tidied up in between. Its agents
        # first try for a minute to tell a head that is gone why they end.
        _, left = psutil.wait_procs(started, timeout=TIMEOUT_S)
        assert not [p for p in left if p.status() != psutil.STATUS_ZOMBIE]


@dataclass(frozen=True)
class Two:
    """What a run with two workers left.

    Attributes:
        run: Its folder.
        output: What it printed.
        home: The user's folder that it had.
        listeners: What its processes listened on, where it had a network of its own.
    """

    run: Path
    output: str
    home: Path
    listeners: set[Listener]


@pytest.fixture(scope="module")
def two(folder: Path) -> Iterator[Two]:
    """A run with two workers, in a network with a second address if this machine makes one."""
    config = str(write_config(folder, "two", training={**RUN, "grad_accum_steps": 1}))
    home = folder / "home"
    home.mkdir()
    with ExitStack() as stack:
        prefix: tuple[str, ...] = ()
        if can_make_networks():
            prefix = stack.enter_context(Network(80)).prefix(1)
        printed = folder / "two.log"
        listeners = listeners_while(
            [*prefix, TRUTHGPT, "train", config, "--workers", "2"], folder, home, printed
        )
        yield Two(folder / "runs" / "two", printed.read_text(), home, listeners)


def listeners_while(command: list[str], folder: Path, home: Path, printed: Path) -> set[Listener]:
    """Runs a command to its end; returns what its processes listened on meanwhile."""
    run_id = create_run_id()
    environment = {**os.environ, **create_run_environment(run_id), "HOME": str(home)}
    found: set[Listener] = set()
    with printed.open("w") as file:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT
        )
        try:
            deadline = time.monotonic() + 2 * TIMEOUT_S
            while process.poll() is None:
                assert time.monotonic() < deadline, printed.read_text()
                found |= set(find_listeners(run_id))
                time.sleep(LOOK_S)
        finally:
            process.kill()
            process.wait(10)
            end_run(run_id)
    assert process.returncode == 0, printed.read_text()
    return found


def test_two_workers_equal_one_with_twice_the_accumulation(two: Two, whole: Path) -> None:
    assert "2 workers on CPU" in two.output
    assert losses(two.run) == pytest.approx(losses(whole), rel=1e-4)
    units = [
        [event["num_units"] for event in read_events(folder) if event["event"] == "step"]
        for folder in (two.run, whole)
    ]
    assert units[0] == units[1]


@pytest.mark.skipif(
    not can_make_networks(), reason="needs root and Debian's iproute2 to make network namespaces"
)
def test_workers_listen_on_loopback_alone_and_leave_no_token(two: Two) -> None:
    assert [each for each in two.listeners if not each.is_local] == []
    workers = {each.port for each in two.listeners if "RayTrainWorker" in each.title}
    assert len(workers) > 2, two.listeners
    assert list(two.home.rglob("auth_token")) == []


def test_sharded_workers_end_with_the_first_that_fails_and_learn_as_one(
    folder: Path, whole: Path, ray: dict[str, str]
) -> None:
    config = write_config(folder, "half", training={**RUN, "grad_accum_steps": 1, "fsdp": True})
    run = folder / "runs" / "half"
    in_the_way = run / "checkpoints" / ".step-3.tmp"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.touch()
    with command(folder, str(config), "--workers", "2", ray=ray) as process:
        wait_until_step(process, run, 3)
        output, _ = process.communicate(timeout=FAIL_S)
    assert process.returncode == 2, output
    assert "sharded over 2 workers" in output
    assert "the checkpoint of step 3 cannot be written: [Errno 17] File exists" in output
    in_the_way.unlink()
    run_command(folder, str(config), "--workers", "2", "--resume", ray=ray)
    assert losses(run) == pytest.approx(losses(whole), rel=1e-4)


def test_a_trained_adapter_is_served_by_vllm_as_peft_runs_it(
    folder: Path, tmp_path: Path, ray: dict[str, str]
) -> None:
    config = write_config(
        folder,
        "tales",
        training={"epochs": 2, "learning_rate": 0.01},
        model_optim={"lora": {"enabled": True, "r": 8}},
    )
    output = run_command(folder, str(config), ray=ray)
    printed = yaml.safe_load(output[output.index("\nserving:") :])
    adapter = printed["serving"]["adapters"][0]
    assert adapter["name"] == "tales"
    expected = {
        "tiny": greedy_texts(folder / "llama", PROMPTS, GREEDY_TOKENS),
        "tales": greedy_texts(
            folder / "llama", PROMPTS, GREEDY_TOKENS, adapter=Path(adapter["path"])
        ),
    }
    assert expected["tiny"] != expected["tales"]
    with serve(make_config(folder, serving=printed["serving"]), tmp_path / "log") as server:
        for name, wanted in expected.items():
            texts = [
                server.client.completions.create(
                    model=name, prompt=prompt, max_tokens=GREEDY_TOKENS, temperature=0
                )
                .choices[0]
                .text
                for prompt in PROMPTS
            ]
            assert texts == wanted
