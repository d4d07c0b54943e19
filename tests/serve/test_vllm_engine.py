"""The vLLM family with its real engine on CPU, over real HTTP, without Ray."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from deployments.vllm.tiny_model import make_tiny_adapter, make_tiny_llama
from truthgpt_serve.cluster.ports import free_port
from truthgpt_serve.cluster.processes import (
    create_run_environment,
    create_run_id,
    wait_for_end,
)

PROGRAMS = Path(__file__).parent / "programs"
PROMPTS = ["Hello world", "The quick brown fox", "Once upon a time there was a", "12 + 30 ="]
TOKENS = 24
MAX_BODY_BYTES = 2**20
START_TIMEOUT_S = 300
ORPHANS_S = 10
"""Within this a program's engine has ended after it."""

pytestmark = pytest.mark.timeout(600)


@dataclass
class Server:
    """A running `vllm_server.py`."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    client: openai.OpenAI


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_tiny_llama(folder / "llama")
    make_tiny_adapter(folder / "adapter")
    return folder


def make_config(folder: Path, **changes: Any) -> dict[str, Any]:
    engine = {
        "enforce_eager": True,
        "max_model_len": 1024,
        "kv_cache_memory_bytes": "64M",
    }
    engine |= changes.pop("engine", {})
    return {
        "model": {"name_or_path": str(folder / "llama")},
        "hardware": {"gpus": 0, "cpus": 1},
        "model_optim": {"dtype": "float32"},
        "serving": {"engine": engine, **changes.pop("serving", {})},
        **changes,
    }


def run_program(
    name: str, *arguments: str, run_id: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end, by whose run id the processes that it starts are found again."""
    return subprocess.run(
        [sys.executable, PROGRAMS / name, *arguments],
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_S,
        env=environment() | create_run_environment(run_id or create_run_id()),
    )


def environment() -> dict[str, str]:
    return os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}


@contextlib.contextmanager
def serve(
    config: dict[str, Any], log: Path, *, start_timeout_s: float = START_TIMEOUT_S
) -> Iterator[Server]:
    port = free_port()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, PROGRAMS / "vllm_server.py", str(port), "tiny", json.dumps(config)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment(),
        )
    url = f"http://127.0.0.1:{port}"
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
    server = Server(process, url, log, client)
    tree: list[psutil.Process] = []
    try:
        wait_for(lambda: is_up(server), start_timeout_s, log)
        tree = descendants(process.pid)
        yield server
    finally:
        client.close()
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)
        assert not alive(tree, within_s=10)


def is_up(server: Server) -> bool:
    if server.process.poll() is not None:
        pytest.fail(f"the server ended:\n{server.log.read_text()[-4000:]}")
    try:
        return httpx.get(f"{server.url}/check").status_code == 200
    except httpx.TransportError:
        return False


def wait_for(condition: Any, timeout_s: float, log: Path | None = None) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            text = log.read_text()[-4000:] if log else ""
            pytest.fail(f"not reached within {timeout_s} s\n{text}")
        time.sleep(0.1)


def descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def alive(processes: list[psutil.Process], *, within_s: float) -> list[psutil.Process]:
    """Returns which processes still run after at most `within_s` seconds."""
    deadline = time.monotonic() + within_s
    while True:
        left = [process for process in processes if is_alive(process)]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    adapters = [{"name": "tiny-adapter", "path": str(folder / "adapter")}]
    serving = {"adapters": adapters, "max_body_bytes": MAX_BODY_BYTES}
    config = make_config(folder, serving=serving)
    with serve(config, tmp_path_factory.mktemp("server") / "log") as server:
        yield server


@pytest.fixture(scope="module")
def reference(folder: Path) -> dict[str, list[str]]:
    done = run_program(
        "greedy_reference.py",
        str(folder / "llama"),
        str(folder / "adapter"),
        str(TOKENS),
        json.dumps(PROMPTS),
    )
    assert done.returncode == 0, done.stderr
    texts: dict[str, list[str]] = json.loads(done.stdout)
    return texts


@pytest.mark.parametrize(("model", "key"), [("tiny", "alone"), ("tiny-adapter", "adapted")])
def test_greedy_output_equals_transformers(
    server: Server, reference: dict[str, list[str]], model: str, key: str
) -> None:
    for prompt, expected in zip(PROMPTS, reference[key], strict=True):
        answer = server.client.completions.create(
            model=model, prompt=prompt, max_tokens=TOKENS, temperature=0
        )
        assert answer.choices[0].text == expected
        assert answer.model == model


def test_adapter_changes_the_output(reference: dict[str, list[str]]) -> None:
    assert reference["alone"] != reference["adapted"]


def test_models_lists_model_and_adapter(server: Server) -> None:
    assert [model.id for model in server.client.models.list()] == ["tiny", "tiny-adapter"]


def test_the_card_names_the_parsers_that_the_template_chose(server: Server) -> None:
    card = httpx.get(f"{server.url}/v1/models/tiny", timeout=30).json()["acceleration"]
    assert (card["tool_call_parser"], card["reasoning_parser"]) == ("hermes", None)


def test_chat_streams_what_it_answers_whole(server: Server) -> None:
    request: dict[str, Any] = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 16,
        "temperature": 0,
    }
    whole = server.client.chat.completions.create(**request)
    chunks = list(server.client.chat.completions.create(**request, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert len(chunks) > 1  # the beginning, and on a busy machine all tokens in one


def test_json_schema_is_obeyed(server: Server) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}, "sure": {"type": "boolean"}},
        "required": ["colour", "sure"],
        "additionalProperties": False,
    }
    answer = server.client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "A colour?"}],
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": schema, "strict": True},
        },
        max_tokens=300,
        temperature=0,
    )
    value = json.loads(answer.choices[0].message.content or "")
    assert value["colour"] in ("red", "blue")
    assert isinstance(value["sure"], bool)


def test_named_tool_is_called(server: Server) -> None:
    parameters = {
        "type": "object",
        "properties": {"unit": {"enum": ["metre", "mile"]}},
        "required": ["unit"],
        "additionalProperties": False,
    }
    answer = server.client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "How far?"}],
        tools=[
            {
                "type": "function",
                "function": {"name": "measure", "parameters": parameters, "strict": True},
            },
        ],
        tool_choice={"type": "function", "function": {"name": "measure"}},
        max_tokens=300,
        temperature=0,
    )
    calls = answer.choices[0].message.tool_calls
    assert calls is not None
    function: Any = calls[0]
    assert function.function.name == "measure"
    assert json.loads(function.function.arguments)["unit"] in ("metre", "mile")


def test_engine_on_cpu_is_one_process(server: Server) -> None:
    """Its worker would spin on a second core; `VLLM::Worker` is what that process is called."""
    titles = [" ".join(process.cmdline()) for process in descendants(server.process.pid)]
    assert [title for title in titles if "EngineCore" in title], titles
    assert not [title for title in titles if "Worker" in title], titles


def test_unknown_model_is_404(server: Server) -> None:
    with pytest.raises(openai.NotFoundError):
        server.client.completions.create(model="nobody", prompt="Hi")


@pytest.mark.parametrize("prefix", ["", "/models/tiny"])
@pytest.mark.parametrize(("model", "key"), [("tiny", "alone"), ("tiny-adapter", "adapted")])
def test_generic_route(
    server: Server, reference: dict[str, list[str]], prefix: str, model: str, key: str
) -> None:
    inputs = {"text": PROMPTS[0], "max_new_tokens": TOKENS, "temperature": 0}
    answer = httpx.post(
        f"{server.url}{prefix}/v1/infer",
        json={"model": model, "inputs": inputs},
        headers={"x-request-id": "abc"},
        timeout=60,
    )
    assert answer.json() == {
        "model": model,
        "outputs": {"text": reference[key][0], "finish_reason": "length"},
    }
    assert answer.headers["x-request-id"] == "abc"


def test_vllm_answers_below_a_root_path(server: Server) -> None:
    answer = httpx.post(
        f"{server.url}/models/tiny/tokenize", json={"model": "tiny", "prompt": "Hello world"}
    )
    assert answer.status_code == 200
    assert answer.json()["count"] == 4
    assert httpx.get(f"{server.url}/models/tiny/health").status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "no body"),
        (b"{", 400, "not valid JSON"),
        (b'{"inputs": {"text": "a"}}', 400, "model"),
        (b'{"model": "tiny"}', 400, "inputs"),
        (b'{"model": "tiny", "inputs": {}}', 400, "inputs.text"),
        (b'{"model": "tiny", "inputs": {"text": "a", "temperature": -1}}', 400, "temperature"),
        (b'{"model": "nobody", "inputs": {"text": "a"}}', 404, "nobody"),
    ],
)
def test_generic_route_refuses(server: Server, body: bytes, status: int, message: str) -> None:
    answer = httpx.post(f"{server.url}/v1/infer", content=body)
    assert answer.status_code == status
    assert message in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/infer", "/models/tiny/v1/completions"])
def test_a_body_that_is_too_large_is_refused(server: Server, path: str) -> None:
    whole = b" " * (MAX_BODY_BYTES + 1)
    for content in (whole, (whole[start : start + 2**16] for start in range(0, 2**20 + 1, 2**16))):
        answer = httpx.post(f"{server.url}{path}", content=content)
        assert answer.status_code == 413, answer.text
        assert "larger than 1048576 bytes" in answer.json()["error"]["message"]


def test_a_body_in_chunks_is_answered_as_a_whole_one(server: Server) -> None:
    request = {"model": "tiny", "prompt": PROMPTS[0], "max_tokens": 4, "temperature": 0}
    whole = json.dumps(request).encode()
    url = f"{server.url}/v1/completions"
    answers = [
        httpx.post(url, content=content, headers={"content-type": "application/json"}).json()
        for content in (whole, (whole[start : start + 8] for start in range(0, len(whole), 8)))
    ]
    assert answers[0]["choices"] == answers[1]["choices"]
    assert answers[0]["usage"]["completion_tokens"] == 4


def test_generic_route_streams(server: Server, reference: dict[str, list[str]]) -> None:
    inputs = {"text": PROMPTS[0], "max_new_tokens": TOKENS, "temperature": 0}
    answer = httpx.post(
        f"{server.url}/v1/infer",
        json={"model": "tiny", "inputs": inputs, "stream": True},
        timeout=60,
    )
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, last = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert last == "[DONE]"
    outputs = [json.loads(event)["outputs"] for event in events]
    assert "".join(output["text"] for output in outputs) == reference["alone"][0]
    assert outputs[-1]["finish_reason"] == "length"


def test_engine_stops_when_the_generic_client_leaves(server: Server) -> None:
    inputs = {"text": PROMPTS[0], "max_new_tokens": 900, "ignore_eos": True}
    body = {"model": "tiny", "inputs": inputs, "stream": True}
    for _ in range(3):
        with httpx.stream("POST", f"{server.url}/v1/infer", json=body, timeout=60) as answer:
            next(answer.iter_bytes())
    wait_for(lambda: running_requests(server) == 0, 5)
    tokens = generation_tokens(server)
    time.sleep(0.5)
    assert generation_tokens(server) == tokens


def metric(server: Server, name: str) -> float:
    text = httpx.get(f"{server.url}/metrics", follow_redirects=True).text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


def running_requests(server: Server) -> float:
    return metric(server, "vllm:num_requests_running")


def generation_tokens(server: Server) -> float:
    return metric(server, "vllm:generation_tokens_total")


def test_generic_route_takes_only_post(server: Server) -> None:
    assert httpx.get(f"{server.url}/v1/infer").status_code == 405


def test_health_fails_after_the_engine_dies(server: Server) -> None:
    # The last user of `server`: this breaks it.
    tree = descendants(server.process.pid)
    titles = {process: " ".join(process.cmdline()) for process in tree}
    (core,) = [process for process, title in titles.items() if "EngineCore" in title]
    core.kill()
    wait_for(lambda: httpx.get(f"{server.url}/check").status_code == 500, 10)
    assert "EngineDeadError" in httpx.get(f"{server.url}/check").text
    # The resource tracker and the compiler of grammars belong to the server's own process, which
    # lives on.
    own = ("tracker", "grammar.worker")
    engine = [p for p, title in titles.items() if not any(word in title for word in own)]
    assert not alive(engine, within_s=10)


def test_embeddings_and_no_orphans_after_kill(folder: Path, tmp_path: Path) -> None:
    config = make_config(folder, task="embedding")
    with serve(config, tmp_path / "log") as server:
        answer = server.client.embeddings.create(
            model="tiny", input=["Hello world"], encoding_format="float"
        )
        generic = httpx.post(
            f"{server.url}/v1/infer",
            json={"model": "tiny", "inputs": {"text": "Hello world"}},
            timeout=60,
        )
        embedding = generic.json()["outputs"]["embedding"]
        assert len(embedding) == 128
        assert embedding == pytest.approx(answer.data[0].embedding, abs=1e-5)

        tree = descendants(server.process.pid)
        assert len(tree) >= 2
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(5)
        assert not alive(tree, within_s=5)


def test_no_orphans_after_a_kill_during_the_start(folder: Path) -> None:
    command = [sys.executable, str(PROGRAMS / "vllm_server.py"), str(free_port()), "tiny"]
    with subprocess.Popen(
        [*command, json.dumps(make_config(folder))],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
    ) as process:
        try:
            wait_for(lambda: spawned(process.pid), START_TIMEOUT_S)
            # Now the engine's process imports what it needs, before it loads any plug-in.
            time.sleep(0.5)
            tree = descendants(process.pid)
        finally:
            process.kill()
    assert not alive(tree, within_s=15)


def spawned(pid: int) -> bool:
    return any("--multiprocessing-fork" in child.cmdline() for child in descendants(pid))


@pytest.mark.parametrize("how", ["sync", "async", "left"])
def test_offline_use_starts_and_stops_its_own_engine(
    folder: Path, reference: dict[str, list[str]], how: str
) -> None:
    inputs = {"text": PROMPTS[1], "max_new_tokens": TOKENS, "temperature": 0}
    run_id = create_run_id()
    config = json.dumps(make_config(folder))
    done = run_program("vllm_offline.py", how, config, json.dumps(inputs), run_id=run_id)
    assert done.returncode == 0, done.stderr[-4000:]
    # An engine that stops with the program logs behind it.
    (line,) = [line for line in done.stdout.splitlines() if line.startswith('{"answer"')]
    result = json.loads(line)
    expected = reference["alone"][1]
    assert result["answer"] == {"text": expected, "finish_reason": "length"}
    assert "".join(delta["text"] for delta in result["deltas"]) == expected
    assert len(result["deltas"]) > 1  # a busy machine joins some
    if how != "left":
        assert result["unfinished"] == [1, 0]
        assert result["error"] == "RequestError"
    assert not wait_for_end(run_id, ORPHANS_S)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"name_or_path": "nobody/nothing"}}, "nobody/nothing"),
        ({"engine": {"kv_cache_memory_bytes": "2M", "max_model_len": 4096}}, "did not start"),
    ],
    ids=["no weights", "engine process fails"],
)
def test_failed_start_says_why_and_leaves_nothing(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    run_id = create_run_id()
    config = json.dumps(make_config(folder, **changes))
    done = run_program("vllm_server.py", str(free_port()), "tiny", config, run_id=run_id)
    assert done.returncode != 0
    last = done.stderr[-3000:]
    assert "UnavailableError: model 'tiny': vLLM did not start" in last
    assert message in last
    assert not wait_for_end(run_id, ORPHANS_S)
