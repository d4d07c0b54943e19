"""The family `remote` in front of a second server, over HTTP, with OpenAI's own client."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml

from tests.support.remote_servers import (
    KEY,
    KEY_VARIABLE,
    Hosted,
    OtherServer,
    Request,
    relay_to,
    relayed,
    remote_cfg,
)
from tests.support.sample_models import wait_until
from tests.support.servers import serve_asgi
from truthgpt_serve import build_async_model, build_model, run_infer
from truthgpt_serve.cluster.ports import free_port
from truthgpt_serve.config import load_model_config
from truthgpt_serve.errors import RequestError
from truthgpt_serve.http.asgi import Receive, Scope, Send
from truthgpt_serve.runner import run_stream
from truthgpt_serve.usage.counted import Usage, counting

ROOT = Path(__file__).parents[4]
WORDS = [{"role": "user", "content": "one two"}]


@pytest.fixture(scope="module")
def second() -> Iterator[str]:
    """The echo family in a process of its own, as another operator would run it."""
    port = free_port()
    command = [sys.executable, str(ROOT / "benchmarks" / "echo_server.py"), str(port)]
    process = subprocess.Popen(command, cwd=ROOT)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while not answers(f"{url}/health"):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield f"{url}/v1"
    finally:
        process.terminate()
        process.wait(30)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def client(second: str) -> Iterator[openai.OpenAI]:
    with relay_to(second) as http, openai_client(http) as client:
        yield client


def openai_client(http: httpx.Client) -> openai.OpenAI:
    base = f"{http.base_url}".rstrip("/")
    return openai.OpenAI(base_url=f"{base}/v1", api_key="client-key", max_retries=0, timeout=30)


def test_chat(client: openai.OpenAI, second: str) -> None:
    messages: Any = WORDS
    answer = client.chat.completions.create(model="far", messages=messages, max_tokens=3)
    assert answer.choices[0].message.content == " one two one"
    assert answer.model == "far"
    with openai.OpenAI(base_url=second, api_key="x") as direct:
        theirs = direct.chat.completions.create(model="echo", messages=messages, max_tokens=3)
    different = {"id": "", "created": 0, "model": ""}
    assert answer.model_dump() | different == theirs.model_dump() | different


def test_streams(client: openai.OpenAI) -> None:
    messages: Any = WORDS
    chunks = list(
        client.chat.completions.create(model="far", messages=messages, max_tokens=5, stream=True)
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == (
        " one two one two one"
    )
    assert {chunk.model for chunk in chunks} == {"far"}
    texts = client.completions.create(model="far", prompt="a b", max_tokens=4, stream=True)
    assert "".join(chunk.choices[0].text for chunk in texts) == " a b a b"


def test_tokens_are_counted_for_requests_that_have_a_key(second: str) -> None:
    counted: list[Usage] = []
    hosted = Hosted(remote_cfg(second), "far")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await hosted(scope, receive, send)
            return
        usage = Usage(priority=0)
        with counting(usage):
            await hosted(scope, receive, send)
        usage.finish()
        counted.append(usage)

    body = {"model": "far", "messages": WORDS, "max_tokens": 5}
    with serve_asgi(app, lifespan="on") as url, httpx.Client(base_url=url, timeout=30) as client:
        whole = client.post("/v1/chat/completions", json=body).json()["usage"]
        plain = client.post("/v1/chat/completions", json={**body, "stream": True}).text
        options = {"stream": True, "stream_options": {"include_usage": True}}
        told = client.post("/v1/chat/completions", json={**body, **options}).text
        assert client.post("/v1/chat/completions", json={**body, "top_p": 7}).status_code == 400
        inputs = {"text": "one two", "max_new_tokens": 5}
        infer = {"model": "far", "inputs": inputs}
        assert client.post("/v1/infer", json=infer).status_code == 200
        stream = client.post("/v1/infer", json={**infer, "stream": True}).text
        own = {**inputs, "stream_options": {"include_usage": False}}
        assert (
            "usage"
            not in client.post(
                "/v1/infer", json={"model": "far", "inputs": own, "stream": True}
            ).text
        )
    *_, last, done, _ = [part.removeprefix("data: ") for part in stream.split("\n\n")]
    assert done == "[DONE]"
    assert json.loads(last)["outputs"] == {
        "text": "",
        "finish_reason": "length",
        "usage": {"prompt_tokens": 2, "completion_tokens": 5},
    }
    assert '"choices":[]' not in plain
    assert '"choices":[]' in told
    tokens = [(usage.prompt_tokens, usage.completion_tokens) for usage in counted]
    assert tokens[:4] == [(whole["prompt_tokens"], whole["completion_tokens"])] * 3 + [(0, 0)]
    assert tokens[4:6] == [(2, 5)] * 2
    assert tokens[6] == (len("one two") // 4, 5)  # its client said that it is not told its tokens


@pytest.mark.long("waits for limits of time")
def test_a_client_that_leaves_pays_about_its_prompt(second: str) -> None:
    """The other server has not said yet what it is."""
    counted: list[Usage] = []
    hosted = Hosted(remote_cfg(second), "far")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        usage = Usage(priority=0)
        try:
            with counting(usage):
                await hosted(scope, receive, send)
        finally:
            usage.finish()
            counted.append(usage)

    text = {"model": "far", "prompt": "word " * 400, "max_tokens": 100_000}
    with serve_asgi(app, lifespan="on") as url, httpx.Client(base_url=url, timeout=30) as client:
        counted.clear()
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/completions", json=text, timeout=5)
        wait_until(lambda: len(counted) == 1)
        with client.stream("POST", "/v1/completions", json={**text, "stream": True}) as answer:
            lines = answer.iter_lines()
            assert all(next(lines) is not None for _ in range(20))
        wait_until(lambda: len(counted) == 2)
    assert [400 < usage.prompt_tokens < 700 for usage in counted[:2]] == [True, True]
    assert counted[1].completion_tokens > 0


def test_errors_of_the_other_server_pass(client: openai.OpenAI) -> None:
    messages: Any = WORDS
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="far", messages=messages, temperature=99)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.NotFoundError, match="there is no /v1/fine_tuning/jobs here"):
        client.fine_tuning.jobs.list()


def test_names_that_are_not_its_own_are_refused(client: openai.OpenAI) -> None:
    messages: Any = WORDS
    for model in ("echo", "other"):
        with pytest.raises(openai.NotFoundError) as caught:
            client.chat.completions.create(model=model, messages=messages)
        assert caught.value.code == "model_not_found"
    assert [model.id for model in client.models.list()] == ["far"]
    card: Any = client.models.retrieve("far")
    assert card.remote == {"status": "up"}


def test_other_names_are_the_same_model() -> None:
    alias = "gpt-4o-mini"
    with relayed(model="there", serving={"aliases": [alias]}) as (client, other):
        for name in (alias, "far"):
            answer = client.post("/v1/chat/completions", json={"model": name, "messages": WORDS})
            assert answer.json()["model"] == "far"
            assert other.last.json()["model"] == "there"
            assert client.get(f"/v1/models/{name}").json()["id"] == name
        events = client.post("/v1/chat/completions", json={"model": alias, "stream": True}).text
        assert '"model": "there"' not in events
        assert '"model":"far"' in events.replace(": ", ":")
        client.get(f"/v2/models/{alias}/versions/1")
        assert other.last.path.endswith("/v2/models/there/versions/1")
        assert [card["alias_of"] for card in client.get("/v1/models").json()["data"][1:]] == ["far"]


def test_the_generic_route_and_the_command(second: str, tmp_path: Path) -> None:
    expected = {"text": " one two one", "finish_reason": "length"}
    usage = {"prompt_tokens": 2, "completion_tokens": 3}
    inputs = {"text": "one two", "max_new_tokens": 3}
    for way in ("chat", "completion"):
        cfg = remote_cfg(second, infer_with=way)
        path = tmp_path / f"{way}.yaml"
        keys = {key: cfg[key] for key in ("run_name", "model")}
        path.write_text(yaml.safe_dump({**keys, "serving": {"engine": {"infer_with": way}}}))
        assert run_infer(path, inputs) == {**expected, "usage": usage}
        pieces = list(run_stream(path, inputs))
        assert "".join(piece["text"] for piece in pieces) == expected["text"]
        assert pieces[-1]["finish_reason"] == "length"
        with relay_to(second, infer_with=way) as http:
            body = {"model": "far", "inputs": inputs}
            answer = http.post("/v1/infer", json=body).json()
            assert answer == {"model": "far", "outputs": {**expected, "usage": usage}}
            stream = http.post("/v1/infer", json={**body, "stream": True}).text
            events = [line.removeprefix("data: ") for line in stream.split("\n\n") if line]
            assert events[-1] == "[DONE]"
            texts = [json.loads(event)["outputs"]["text"] for event in events[:-1]]
            assert "".join(texts) == expected["text"]
            refused = http.post("/v1/infer", json={"model": "far", "inputs": {"txt": 1}})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "inputs.text")


def test_without_a_server_with_and_without_an_event_loop(second: str) -> None:
    cfg = remote_cfg(second)
    cfg = {key: cfg[key] for key in ("run_name", "model")}
    inputs = {"text": "one two", "max_new_tokens": 3}
    usage = {"prompt_tokens": 2, "completion_tokens": 3}
    expected = {"text": " one two one", "finish_reason": "length", "usage": usage}
    with build_model("remote", cfg) as model:
        assert model.infer(inputs) == expected
        assert model.infer(inputs) == expected
        pieces = list(model.stream(inputs))
        assert "".join(piece["text"] for piece in pieces) == expected["text"]
        stream = model.stream({**inputs, "max_new_tokens": 1000})
        next(stream)
        stream.close()
        with pytest.raises(RequestError, match="text"):
            model.infer({"text": 1})

    async def use() -> None:
        async with await build_async_model("remote", cfg) as model:
            assert await model.infer(inputs) == expected
            pieces = [piece async for piece in model.stream(inputs)]
            assert "".join(piece["text"] for piece in pieces) == expected["text"]

    asyncio.run(use())


def test_other_tasks(tmp_path: Path) -> None:
    with relayed(task="embedding") as (http, other):
        answer = openai_client(http).embeddings.create(model="far", input="hello")
        assert (answer.data[0].embedding, answer.model) == ([0.5, 0.25], "far")
        body = {"model": "far", "inputs": {"text": "hello", "dimensions": 2}}
        outputs = http.post("/v1/infer", json=body).json()["outputs"]
        assert outputs == {"embedding": [0.5, 0.25], "num_tokens": 2}
        assert other.last.json() == {"dimensions": 2, "input": "hello", "model": "there"}
    with relayed(task="custom") as (http, other):
        refused = http.post("/v1/infer", json={"model": "far", "inputs": {}})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unsupported")
        assert http.post("/v1/rerank", json={"model": "far"}).json()["path"] == "/v1/rerank"


def test_only_the_name_changes_in_a_request_and_an_answer() -> None:
    body = (
        b'{ "messages" : [{"role":"user","content":"\xc3\xa4 \\u00e4"}],\n "model":"far","n":1.0}'
    )
    with relayed(health_path=None) as (http, other):
        answer = http.post("/v1/chat/completions?a=%2F&b", content=body)
        assert other.last.body == body.replace(b'"far"', b'"there"')
        assert (other.last.path, other.last.query) == ("/v1/chat/completions", "a=%2F&b")
        assert answer.json()["model"] == "far"
        assert answer.json()["choices"][0]["message"]["content"] == 'I am not "model": "there"'
        assert int(answer.headers["content-length"]) == len(answer.content)
        assert http.get("/tokenizer_info").json()["path"] == "/tokenizer_info"
        assert http.delete("/v1/responses/a%2Fb").json()["path"] == "/v1/responses/a%2Fb"
        sound = bytes(range(256)) * 8192
        files: dict[str, Any] = {
            "file": ("model", sound),
            "model": (None, "far"),
            "language": (None, "en"),
        }
        assert http.post("/v1/audio/transcriptions", files=files).status_code == 200
        assert sound in other.last.body
        assert b'name="model"\r\n\r\nthere\r\n' in other.last.body
        assert other.last.header("content-length") == [str(len(other.last.body))]


@pytest.mark.parametrize(
    ("models", "asked"),
    [(("there",), "there"), (("a", "far"), "far"), (("a", "b"), "far"), ((), "far")],
)
def test_the_name_there_is_found_out(models: tuple[str, ...], asked: str) -> None:
    for health_path in ("/v1/models", None):
        other = OtherServer(models=models)
        with (
            serve_asgi(other) as url,
            relay_to(f"{url}/v1", health_path=health_path) as http,
        ):
            assert http.post("/v1/completions", json={"model": "far"}).json()["model"] == "far"
            assert other.last.json() == {"model": asked}


def test_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, f"{KEY}\n")

    async def behave(request: Request, send: Send) -> None:
        lines = [("set-cookie", "a=1"), ("x-ratelimit-remaining", "7"), ("connection", "x-hop")]
        lines.append(("x-truthgpt-unreached", "1"))
        headers = [(name.encode(), value.encode()) for name, value in [*lines, ("x-hop", "1")]]
        headers += [(b"content-type", b"text/plain"), (b"x-request-id", b"theirs")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"fine"})

    given = {
        "authorization": "Bearer client-key",
        "api-key": "client-key",
        "cookie": "session=client-key",
        "x-forwarded-for": "192.0.2.1",
        "connection": "keep-alive, x-private",
        "x-private": "1",
        "x-title": "mine",
        "x-request-id": "abc-1",
        "anthropic-version": "2023-06-01",
    }
    with relayed(api_key_env=KEY_VARIABLE, headers={"X-Title": "ours"}) as (http, other):
        other.behave = behave
        answer = http.post("/v1/x", json={"model": "far"}, headers=given)
        assert answer.text == "fine"
        sent = other.last
        assert sent.header("authorization") == [f"Bearer {KEY}"]
        assert sent.header("x-title") == ["ours"]
        assert sent.header("x-request-id") == ["abc-1"]
        assert sent.header("anthropic-version") == ["2023-06-01"]
        assert "client-key" not in str(sent.headers)
        for name in ("x-private", "x-forwarded-for", "cookie", "api-key"):
            assert sent.header(name) == []
        assert answer.headers.get_list("x-request-id") == ["abc-1"]
        assert answer.headers["x-ratelimit-remaining"] == "7"
        assert not {"set-cookie", "x-hop", "x-truthgpt-unreached"} & set(answer.headers)
        assert KEY not in str(answer.headers)
    with relayed(api_key_env=KEY_VARIABLE, api_key_header="X-Api-Key") as (http, other):
        http.post("/v1/x", json={"model": "far"}, headers=given)
        assert (other.last.header("x-api-key"), other.last.header("authorization")) == ([KEY], [])


def test_paths_can_be_limited() -> None:
    with relayed(paths=["/v1/chat"]) as (http, other):
        assert http.post("/v1/chat/completions", json={"model": "far"}).status_code == 200
        for path in ("/v1/files", "/v1/chats", "/v1/chat/..%2ffiles", "/v1/chat/%2e%2e/files"):
            assert http.get(path).status_code in (400, 404)
        assert len(other.requests) == 1


@pytest.mark.long("waits for limits of time")
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/infer"])
def test_a_client_that_leaves_before_a_whole_answer_stops_the_generation(path: str) -> None:
    keys = {"model": {"family": "echo"}, "serving": {"engine": {"token_interval_s": 0.01}}}
    second = Hosted(load_model_config(keys).to_cfg(), "echo")
    fields = {"prompt": "a", "max_tokens": 100_000}
    inputs = {"text": "a", "max_new_tokens": 100_000}
    body = {"model": "far", **(fields if path == "/v1/completions" else {"inputs": inputs})}
    with serve_asgi(second, lifespan="on") as url, relay_to(f"{url}/v1") as http:
        with pytest.raises(httpx.ReadTimeout):
            http.post(path, json=body, timeout=2)
        deadline = time.monotonic() + 10
        while second.instance.model.ongoing:
            assert time.monotonic() < deadline, "the second server still generates"
            time.sleep(0.01)


def test_a_client_that_leaves_stops_the_generation() -> None:
    keys = {"model": {"family": "echo"}, "serving": {"engine": {"token_interval_s": 0.01}}}
    second = Hosted(load_model_config(keys).to_cfg(), "echo")
    body = {"model": "far", "prompt": "a", "max_tokens": 100_000, "stream": True}
    with serve_asgi(second, lifespan="on") as url, relay_to(f"{url}/v1") as http:
        with http.stream("POST", "/v1/completions", json=body) as answer:
            pieces = answer.iter_bytes()  # once it is gone, the connection is closed
            assert next(pieces)
            assert second.instance.model.ongoing == 1
        deadline = time.monotonic() + 10
        while second.instance.model.ongoing:
            assert time.monotonic() < deadline, "the second server still generates"
            time.sleep(0.01)
