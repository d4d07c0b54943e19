"""Processes that die, of a user's class and of vLLM: answers, replacement, quarantine, causes."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from benchmarks.local_cluster import LocalCluster, model_application, router_application
from deployments.vllm.tiny_model import make_tiny_llama
from tests.serve.bare_cluster import install
from tests.support.cli_service import run_program

pytestmark = pytest.mark.timeout(900)

SERVE = Path(__file__).parents[1]
WAIT_S = 420
CPU = {"gpus": 0, "cpus": 0.1}
ENGINE = {"enforce_eager": True, "max_model_len": 512, "kv_cache_memory_bytes": "64M"}


def dying(name: str, load: str | None = None) -> dict[str, Any]:
    config: dict[str, Any] = {
        "model": {"family": "dying", "import": "dying_models"},
        "hardware": CPU,
        "serving": {"engine": {"load": load} if load else {}},
    }
    return model_application(name, config)


def models(folder: Path) -> list[dict[str, Any]]:
    tiny = {
        "model": {"name_or_path": str(folder / "llama")},
        "hardware": {"gpus": 0, "cpus": 1},
        "model_optim": {"dtype": "float32"},
        "serving": {"engine": ENGINE},
    }
    return [dying("fine"), model_application("tiny", tiny)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deaths")
    make_tiny_llama(folder / "llama")
    return folder


@pytest.fixture(scope="module")
def cluster(bare: LocalCluster, modules: Path, folder: Path) -> LocalCluster:
    shutil.copy(SERVE / "user_dying_models.py", modules / "dying_models.py")
    install(bare, models(folder), timeout_s=WAIT_S)
    return bare


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=cluster.url, timeout=90) as client:
        yield client


def infer(client: httpx.Client, text: str, path: str = "/v1/infer") -> httpx.Response:
    return client.post(path, json={"model": "fine", "inputs": {"text": text}})


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


@pytest.mark.parametrize("path", ["/v1/infer", "/models/fine/v1/infer"])
def test_a_request_that_kills_twice_is_refused_and_others_are_served(
    client: httpx.Client, path: str
) -> None:
    poison = f"die segfault {path}"
    for _ in range(2):
        with contextlib.suppress(httpx.TransportError):  # on the direct path the connection ends
            assert infer(client, poison, path).status_code >= 500
        wait_for(lambda: infer(client, "hello").status_code == 200, "no replica")
    for _ in range(3):
        refused = infer(client, poison, path)
        assert refused.status_code == 422
        assert refused.json()["error"]["code"] == "request_quarantined"
    assert infer(client, "hello").json()["outputs"] == {"text": "hello"}

    def page() -> dict[str, Any]:
        found: dict[str, Any] = client.get("/v1/models/fine").json()
        return found

    # A router's news of Serve may be two seconds old.
    wait_for(lambda: page()["status"] == "RUNNING", "it never ran again")
    assert "SIGSEGV (signal 11" in page()["last_error"]


def controller_pid(cluster: LocalCluster) -> int:
    """Returns the process id of this cluster's Serve controller, which names its log after it."""
    log: str = cluster.details()["controller_info"]["log_file_path"]
    return int(re.findall(r"controller_(\d+)\.log", log)[0])


def engine_process(pid: int) -> psutil.Process:
    """Returns the engine's process of the replica `pid`."""
    children = psutil.Process(pid).children(recursive=True)
    found = [child for child in children if "EngineCore" in " ".join(child.cmdline())]
    assert len(found) == 1, [child.cmdline() for child in children]
    return found[0]


def test_a_dead_engine_answers_503_to_all_and_is_replaced_at_once(
    cluster: LocalCluster, client: httpx.Client
) -> None:
    wait_for(lambda: len(cluster.replica_pids("tiny")) == 1, "no replica")
    (before,) = cluster.replica_pids("tiny")
    core = engine_process(before)
    answers: list[tuple[str, httpx.Response]] = []
    begun = threading.Semaphore(0)

    def send(path: str, body: dict[str, Any]) -> None:
        with httpx.stream("POST", f"{cluster.url}{path}", json=body, timeout=WAIT_S) as answer:
            if body.get("stream"):  # its head comes with the first token
                begun.release()
            answer.read()
            answers.append((path, answer))

    long = {"model": "tiny", "prompt": "Once", "max_tokens": 480, "ignore_eos": True}
    inputs = {"text": "Once", "max_new_tokens": 480, "ignore_eos": True}
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/v1/completions", long),
        ("/v1/completions", {**long, "stream": True}),
        ("/models/tiny/v1/completions", long),
        ("/v1/infer", {"model": "tiny", "inputs": inputs}),
        ("/v1/infer", {"model": "tiny", "inputs": inputs, "stream": True}),
    ]
    started = [threading.Thread(target=send, args=request) for request in bodies]
    for thread in started:
        thread.start()
    for path, body in bodies:
        assert not body.get("stream") or begun.acquire(timeout=WAIT_S), path
    core.kill()
    died_s = time.monotonic()
    for thread in started:
        thread.join(WAIT_S)
    assert len(answers) == len(bodies)
    for path, answer in answers:
        if answer.status_code == 200 and "[DONE]" not in answer.text:  # a stream that had begun
            assert '"code":"model_unavailable"' in answer.text, (path, answer.text[-300:])
        elif answer.status_code != 200:  # 200 is one that was faster than the kill
            assert answer.status_code == 503, (path, answer.text)
            assert answer.headers["retry-after"]
            assert answer.json()["error"]["code"] == "model_unavailable"
    assert any(answer.status_code == 503 for _, answer in answers)
    wait_for(lambda: before not in cluster.replica_pids("tiny"), "the replica was not ended")
    print(f"replaced after {time.monotonic() - died_s:.1f} s")

    def is_back() -> bool:
        answer = client.post("/v1/completions", json={**long, "max_tokens": 1})
        assert answer.status_code in (200, 502, 503), answer.text
        return answer.status_code == 200

    wait_for(is_back, "no new engine")
    libraries = Path(f"/proc/{controller_pid(cluster)}/maps").read_text()
    assert "libtorch" not in libraries, "the controller has imported the engine"


def failed_page(client: httpx.Client, name: str) -> dict[str, Any]:
    """Returns a model's page once it says that the model failed, a second late at most."""
    page: dict[str, Any] = {}

    def has_failed() -> bool:
        page.update(client.get(f"/v1/models/{name}").json())
        return bool(page["status"] == "DEPLOY_FAILED")

    wait_for(has_failed, f"{name} has not failed")
    return page


LOADS = {
    "raise": "ValueError: the weights are of another kind",
    "missing": "FileNotFoundError",
    "segfault": "SIGSEGV (signal 11",
    "exit": "exit code 3",
    "kill": "SIGKILL (signal 9)",
    "sys.exit": "sys.exit(4)",
}


@pytest.fixture(scope="module")
def failed(cluster: LocalCluster, modules: Path, folder: Path) -> dict[str, str]:
    """Models that do not start, by what is wrong with them; one waits for CPUs."""
    (modules / "broken_module.py").write_text("import no_such_library_of_mine\n")
    apps = {how: dying(f"load-{how.replace('.', '-')}", how) for how in LOADS}
    apps["import"] = model_application(
        "broken", {"model": {"family": "dying", "import": "broken_module"}, "hardware": CPU}
    )
    apps["engine"] = model_application(
        "no-room",
        {
            "model": {"name_or_path": str(folder / "llama")},
            "hardware": CPU,
            "serving": {"engine": {**ENGINE, "max_model_len": 4096, "kv_cache_memory_bytes": "2M"}},
        },
    )
    waiting = model_application(
        "waiting",
        {
            "model": {"family": "echo"},
            "hardware": {"gpus": 0, "cpus": 4000},
            "serving": {"max_request_s": 1},  # Serve waits so long before it removes a replica
        },
    )
    router = router_application(cluster.port)
    cluster.deploy([*models(folder), router, *apps.values(), waiting])
    names = {how: str(app["name"]) for how, app in apps.items()}

    def all_failed() -> bool:
        statuses = cluster.statuses()
        return all(statuses.get(name) == "DEPLOY_FAILED" for name in names.values())

    wait_for(all_failed, "not all have failed")
    return names


def test_the_cause_of_a_failed_start_comes_first(
    cluster: LocalCluster, client: httpx.Client, failed: dict[str, str]
) -> None:
    causes = {**LOADS, "import": "no_such_library_of_mine", "engine": "KV cache"}
    for how, cause in causes.items():
        found = failed_page(client, failed[how])
        assert cause in found["last_error"], (how, found)
        application = cluster.details()["applications"][failed[how]]
        messages = [value["message"] for value in application["deployments"].values()]
        message = messages[0] if messages else application["message"]
        assert cause in message.partition("start_errors.Cause: ")[2].partition("\n")[0], message
    assert infer(client, "hello").status_code == 200


def truthgpt(cluster: LocalCluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {"TRUTHGPT_URL": cluster.url, "RAY_TMPDIR": str(cluster.folder)}
    return run_program(*arguments, env=env, cwd=cluster.folder)


def test_the_command_line_says_why_a_model_does_not_run(
    cluster: LocalCluster, failed: dict[str, str]
) -> None:
    done = truthgpt(cluster, "why", failed["raise"])
    assert done.returncode == 1
    assert "cause: ValueError: the weights are of another kind" in done.stdout
    frames = "\n  Traceback (most recent call last):\n    File "
    assert frames in done.stdout, done.stdout
    assert "dying_models.py" in done.stdout
    assert "in load\n" in done.stdout
    assert "\n  ValueError: the weights are of another kind\n" in done.stdout
    done = truthgpt(cluster, "why", failed["segfault"])
    assert "SIGSEGV (signal 11" in done.stdout, done.stdout
    assert "Fatal Python error: Segmentation fault" in done.stdout
    done = truthgpt(cluster, "why", failed["import"])
    assert "no_such_library_of_mine" in done.stdout, done.stdout
    done = truthgpt(cluster, "why", failed["engine"])
    assert "KV cache" in done.stdout, done.stdout
    done = truthgpt(cluster, "why", "waiting")
    assert "waits for: 1 replica waits for resources: each needs 4000 CPU" in done.stdout
    done = truthgpt(cluster, "why", "fine")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "fine runs: 1 replica")


def test_the_command_line_shows_what_a_model_printed(
    cluster: LocalCluster, failed: dict[str, str]
) -> None:
    done = truthgpt(cluster, "logs", failed["raise"])
    assert done.returncode == 0, done.stderr
    assert "ValueError: the weights are of another kind" in done.stdout
    assert "('Traceback" not in done.stdout  # Ray's own `print` would write it as one tuple
    done = truthgpt(cluster, "logs", "tiny", "-n", "100000")
    assert "EngineCore" in done.stdout  # the engine's own process too
    done = truthgpt(cluster, "logs", "waiting")
    assert "Importing application 'waiting'" in done.stdout  # more it has not done
