"""Models on other servers over the whole stack: on vLLM's own, on one that comes and goes."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from benchmarks.local_cluster import LocalCluster, model_application
from benchmarks.sides import ENGINE_ENV, ROOT, run_process
from deployments.vllm.tiny_model import make_tiny_llama
from tests.serve.bare_cluster import install
from tests.serve.model_cluster.conftest import KEYS
from tests.support.remote_servers import OtherServer, Request, chat_event, send_start, serve_at
from truthgpt_serve.cluster.ports import free_port
from truthgpt_serve.http.asgi import Send

(KEY_VARIABLE, KEY), (WRONG_KEY_VARIABLE, WRONG_KEY) = KEYS.items()
MAX_MODEL_LEN = 2048
MESSAGES: Any = [{"role": "user", "content": "one two three"}]


@dataclass(frozen=True)
class Remotes:
    """The running service, and the other servers.

    Attributes:
        cluster: Its cluster.
        client: OpenAI's client of its router.
        far: OpenAI's client of vLLM's own server.
        metrics: Returns a metric of vLLM's own server.
        fickle_port: Where the application `fickle` looks for a server.
    """

    cluster: LocalCluster
    client: openai.OpenAI
    far: openai.OpenAI
    metrics: Callable[[str], float]
    fickle_port: int


@pytest.fixture(scope="module")
def service(bare: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remotes]:
    weights = make_tiny_llama(tmp_path_factory.mktemp("llama"))
    port, fickle_port = free_port(), free_port()
    url = f"http://127.0.0.1:{port}"
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server",
        "--host", "127.0.0.1", "--port", str(port), "--model", str(weights),
        "--served-model-name", "org/far-llama", "--enforce-eager", "--dtype", "float32",
        "--max-model-len", str(MAX_MODEL_LEN), "--max-num-seqs", "16",
        "--kv-cache-memory-bytes", str(2**26), "--disable-uvicorn-access-log",
        "--distributed-executor-backend",
        "vllm.v1.executor.uniproc_executor.UniProcExecutor",
    ]  # fmt: skip
    with ExitStack() as stack:
        stack.enter_context(run_process(command, {**ENGINE_ENV, "VLLM_API_KEY": KEY}, url))
        install(bare, applications_of(url, bare.url, fickle_port))

        def connect(base: str, key: str) -> openai.OpenAI:
            client = openai.OpenAI(base_url=f"{base}/v1", api_key=key, max_retries=0, timeout=60)
            return stack.enter_context(client)

        def metrics(name: str) -> float:
            lines = httpx.get(f"{url}/metrics", timeout=10).text.splitlines()
            return sum(float(line.split()[-1]) for line in lines if line.startswith(f"{name}{{"))

        ours, theirs = connect(bare.url, "the-clients-own"), connect(url, KEY)
        yield Remotes(bare, ours, theirs, metrics, fickle_port)


def applications_of(far: str, own: str, fickle_port: int) -> list[dict[str, Any]]:
    """Returns the applications; `own` is the address of this very service."""
    small = {"cpus": 0.1, "gpus": 0}

    def remote(name: str, url: str, *, serving: Any = None, **engine: Any) -> dict[str, Any]:
        model = {"family": "remote", "name_or_path": f"{url}/v1"}
        serving = {**(serving or {}), "engine": engine}
        return model_application(name, {"model": model, "hardware": small, "serving": serving})

    slow = {"engine": {"token_interval_s": 0.05}}
    quick = {"health_period_s": 0.2, "down_after_s": 1, "model": "echo"}
    return [
        model_application("slow", {"model": {"family": "echo"}, "hardware": small,
                                   "serving": slow}),
        remote("far", far, api_key_env=KEY_VARIABLE),
        remote("locked", far, api_key_env=WRONG_KEY_VARIABLE, model="org/far-llama"),
        remote("fickle", f"http://127.0.0.1:{fickle_port}", **quick),
        remote("alias", own, model="slow"),
        remote("narrow", own, model="slow", serving={
            "max_ongoing_requests": 1, "max_queued_requests": 1}),
        remote("loop", own),
    ]  # fmt: skip


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_vllms_own_server_answers_as_if_it_were_here(service: Remotes) -> None:
    asked: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 12, "temperature": 0}
    theirs = service.far.chat.completions.create(model="org/far-llama", **asked)
    ours = service.client.chat.completions.create(model="far", **asked)
    assert ours.choices[0].message.content == theirs.choices[0].message.content
    assert (ours.model, ours.usage) == ("far", theirs.usage)
    chunks = list(service.client.chat.completions.create(model="far", stream=True, **asked))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == theirs.choices[0].message.content
    assert {chunk.model for chunk in chunks} == {"far"}
    response = service.client.responses.create(
        model="far", input="one two", max_output_tokens=16, temperature=0
    )
    assert (response.model, response.object) == ("far", "response")


def test_routes_beside_openais_and_the_generic_one(service: Remotes) -> None:
    with httpx.Client(base_url=service.cluster.url, timeout=60) as http:
        answer = http.post("/tokenize", json={"model": "far", "prompt": "one two"})
        assert answer.json()["count"] > 0
        assert len(answer.headers.get_list("x-request-id")) == 1
        body = {"model": "far", "inputs": {"text": "one two", "max_new_tokens": 4}}
        outputs = http.post("/v1/infer", json=body).json()["outputs"]
        assert outputs["usage"]["completion_tokens"] == 4
        card = http.get("/models/far/v1/models/far").json()
        assert card["remote"] == {"status": "up"}
        listed = [entry["id"] for entry in http.get("/v1/models").json()["data"]]
        assert listed == ["alias", "far", "fickle", "locked", "loop", "narrow", "slow"]


def test_errors_of_the_other_server_pass_the_router(service: Remotes) -> None:
    for client, name in ((service.far, "org/far-llama"), (service.client, "far")):
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model=name, prompt="a", max_tokens=MAX_MODEL_LEN + 1)
        assert "max_tokens" in caught.value.message


def test_a_wrong_key_is_the_operators_business(service: Remotes) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        service.client.chat.completions.create(model="locked", messages=MESSAGES)
    assert caught.value.status_code == 502
    assert caught.value.code == "remote_key_refused"
    assert f"check the environment variable {WRONG_KEY_VARIABLE} of" in caught.value.message


def test_a_client_that_leaves_stops_vllm(service: Remotes) -> None:
    before = service.metrics("vllm:generation_tokens_total")
    stream = service.client.completions.create(
        model="far",
        prompt="one",
        max_tokens=MAX_MODEL_LEN - 64,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    next(iter(stream))
    stream.close()
    wait_until(lambda: service.metrics("vllm:num_requests_running") == 0)
    made = service.metrics("vllm:generation_tokens_total") - before
    assert 0 < made < MAX_MODEL_LEN / 2


def test_another_name_for_a_model_of_this_service(service: Remotes) -> None:
    answer = service.client.chat.completions.create(model="alias", messages=MESSAGES, max_tokens=3)
    assert (answer.choices[0].message.content, answer.model) == (" one two three", "alias")


def test_a_request_that_would_go_round_ends(service: Remotes) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        service.client.chat.completions.create(model="loop", messages=MESSAGES)
    assert (caught.value.status_code, caught.value.code) == (508, "loop_detected")


def test_the_products_own_limits_hold(service: Remotes) -> None:
    def ask(_number: int) -> int:
        try:
            service.client.completions.create(model="narrow", prompt="a", max_tokens=40)
        except openai.APIStatusError as error:
            return error.status_code
        return 200

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(ask, range(8)))
    assert set(statuses) == {200, 429}


def test_a_server_that_comes_and_goes_costs_no_replica(service: Remotes) -> None:
    [pid] = service.cluster.replica_pids("fickle")

    def status() -> int:
        body = {"model": "fickle", "prompt": "a", "max_tokens": 1}
        answer = httpx.post(f"{service.cluster.url}/v1/completions", json=body, timeout=60)
        assert answer.status_code != 503 or int(answer.headers["retry-after"]) >= 1
        return answer.status_code

    assert status() in (502, 503)
    wait_until(lambda: status() == 503)
    port = service.fickle_port
    command = [sys.executable, str(ROOT / "benchmarks" / "echo_server.py"), str(port)]
    with run_process(command, {}, f"http://127.0.0.1:{port}"):
        wait_until(lambda: status() == 200)
    wait_until(lambda: status() == 503)
    assert service.cluster.replica_pids("fickle") == [pid]


def test_answers_that_break_off_do_so_for_the_client_too(service: Remotes) -> None:
    async def cut(request: Request, send: Send) -> None:
        streams = request.json().get("stream")
        await send_start(send, "text/event-stream" if streams else "application/json")
        piece = chat_event("echo", "one") if streams else b'{"model": "echo", "choices": ['
        await send({"type": "http.response.body", "body": piece, "more_body": True})
        await asyncio.sleep(0.1)

    body = {"model": "fickle", "messages": MESSAGES}
    with (
        serve_at(OtherServer(behave=cut), service.fickle_port),
        httpx.Client(base_url=service.cluster.url, timeout=60) as http,
    ):
        wait_until(lambda: http.get("/models/fickle/health").status_code == 200)
        stream = http.post("/v1/chat/completions", json={**body, "stream": True})
        first, last = stream.text.split("\n\n")[:-1]
        assert json.loads(first[6:])["model"] == "fickle"
        assert json.loads(last[6:])["error"]["code"] == "upstream_error"
        with pytest.raises(httpx.RemoteProtocolError):
            http.post("/v1/chat/completions", json=body)


def test_no_key_is_in_a_log_or_in_serves_own_account(service: Remotes) -> None:
    """Runs last: everything above has been logged."""
    logs = Path(service.cluster.folder / "ray" / "session_latest" / "logs")
    text = "\n".join(path.read_text(errors="replace") for path in logs.rglob("*") if path.is_file())
    assert "is relayed to" in text
    text += json.dumps(service.cluster.details())
    for secret in (KEY, WRONG_KEY, "the-clients-own"):
        assert secret not in text
