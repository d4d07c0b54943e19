"""The generic application over real HTTP, with the real `openai` client: routes and shapes."""

from __future__ import annotations

import base64
import io
import itertools
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy
import openai
import pytest
from PIL import Image

from deployments.echo.config import FAMILY
from tests.support.image_files import bomb, create_image, encode, jpeg_of_scans
from tests.support.sample_models import Base, Continuation, Misbehaving, Ticks, Upper, spec_of
from tests.support.servers import serve_asgi
from truthgpt_serve.errors import RequestError
from truthgpt_serve.image_files.jpeg import MAX_SCANS
from truthgpt_serve.server import create_app

HI: Any = [{"role": "system", "content": "Be."}, {"role": "user", "content": "hello you"}]


@contextmanager
def serving(cls: type, cfg: dict[str, Any] | None = None) -> Iterator[httpx.Client]:
    app = create_app(spec_of(cls), cfg or {}, name="sample")
    with serve_asgi(app, lifespan="on") as url, httpx.Client(base_url=url, timeout=20) as client:
        yield client


def openai_client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def echo() -> Iterator[openai.OpenAI]:
    cfg = {"serving": {"engine": {"token_interval_s": 0.01, "num_tokens": 8}}}
    app = create_app(FAMILY, cfg, name="echo")
    with serve_asgi(app, lifespan="on") as url, openai_client(url) as client:
        yield client


def complete(client: httpx.Client, prompt: str, **fields: Any) -> httpx.Response:
    body = {"model": "sample", "prompt": prompt, **fields}
    return client.post("/v1/completions", json=body)


def events(answer: httpx.Response) -> list[Any]:
    lines = [line for line in answer.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    return [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


def streamed_text(answer: httpx.Response) -> str:
    got = events(answer)
    assert got[-1] == "[DONE]"
    return "".join(event["choices"][0]["text"] for event in got[:-1])


def test_chat(echo: openai.OpenAI) -> None:
    answer = echo.chat.completions.create(model="echo", messages=HI, max_tokens=3)
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert abs(answer.created - time.time()) < 10
    [choice] = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", " hello you hello")
    assert choice.finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 3)
    assert answer.usage.total_tokens == 5


def test_chat_stream_comes_token_by_token(echo: openai.OpenAI) -> None:
    stream = echo.chat.completions.create(
        model="echo", messages=HI, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    deltas = [chunk.choices[0].delta.content for chunk in chunks[:-2]]
    assert deltas == ["", *[" hello", " you"] * 4]
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * 9 + ["length"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8


def test_tokens_come_as_they_are_made(echo: openai.OpenAI) -> None:
    def gaps() -> list[float]:
        stream = echo.chat.completions.create(model="echo", messages=HI, stream=True)
        times = [time.monotonic() for _ in stream]
        return [later - earlier for earlier, later in itertools.pairwise(times)]

    # On a busy machine a client may find several at once; what comes in one lump always does.
    tries = [gaps() for _ in range(5)]
    assert max(sum(gap > 0.004 for gap in found) for found in tries) >= 5, tries


def test_completion(echo: openai.OpenAI) -> None:
    answer = echo.completions.create(model="echo", prompt="a b", max_tokens=5, stop=["b a b"])
    assert answer.object == "text_completion"
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (" a ", "stop")
    stream = echo.completions.create(model="echo", prompt="a b", stop="b a b", stream=True)
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == " a "
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is None


def test_models(echo: openai.OpenAI) -> None:
    [card] = echo.models.list().data
    assert (card.id, card.object, card.owned_by) == ("echo", "model", "truthgpt-serve")
    assert echo.models.retrieve("echo") == card
    with pytest.raises(openai.NotFoundError) as caught:
        echo.models.retrieve("nosuch")
    assert caught.value.code == "model_not_found"


def test_other_names_of_a_model() -> None:
    alias = "org/Echo-1B:latest"
    app = create_app(FAMILY, {"serving": {"aliases": [alias]}}, name="echo")
    with serve_asgi(app, lifespan="on") as url, openai_client(url) as client:
        for name in (alias, "echo"):
            answer = client.chat.completions.create(model=name, messages=HI, max_tokens=2)
            assert answer.model == "echo"
            stream = client.completions.create(model=name, prompt="a", max_tokens=2, stream=True)
            assert {chunk.model for chunk in stream} == {"echo"}
            assert client.models.retrieve(name).id == name
        listed: Any = client.models.list().data
        assert [(card.id, getattr(card, "alias_of", None)) for card in listed] == [
            ("echo", None),
            (alias, "echo"),
        ]
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("org")
        body = {"model": alias, "inputs": {"text": "a"}}
        assert httpx.post(f"{url}/v1/infer", json=body).json()["model"] == "echo"
        events = httpx.post(f"{url}/v1/infer", json={**body, "stream": True}).text
        assert events.startswith('data: {"model":"echo"')


def test_concurrent_streams_share_the_event_loop(echo: openai.OpenAI) -> None:
    async def run() -> float:
        async with httpx.AsyncClient(base_url=str(echo.base_url)) as client:
            body = {"model": "echo", "prompt": "a", "stream": True, "max_tokens": 30}
            start = time.monotonic()
            posts = [client.post("completions", json=body) for _ in range(16)]
            answers = await asyncio.gather(*posts)
            assert all(answer.text.endswith("data: [DONE]\n\n") for answer in answers)
            return time.monotonic() - start

    import asyncio

    assert asyncio.run(run()) < 4  # one after the other they take 4.8 s


def test_a_plain_class_serves_text_without_a_tokenizer_or_stream() -> None:
    with serving(Upper) as client:
        body = {"model": "sample", "messages": HI, "temperature": 0.5, "seed": 1, "top_k": 3}
        answer = client.post("/v1/chat/completions", json=body).json()
        assert answer["choices"][0]["message"]["content"] == "SYSTEM: BE.\nUSER: HELLO YOU"
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert "usage" not in answer
        inputs = Upper.last.events[-1][1]
        assert inputs == {
            "text": "system: Be.\nuser: hello you",
            "max_new_tokens": 256,
            "temperature": 0.5,
            "top_k": 3,
            "seed": 1,
        }
        streamed = client.post("/v1/chat/completions", json=body | {"stream": True})
        assert streamed.headers["content-type"].startswith("text/event-stream")
        assert streamed.headers["cache-control"] == "no-cache"
        assert streamed.headers["x-accel-buffering"] == "no"
        chunks = events(streamed)
        assert [len(chunks), chunks[-1]] == [4, "[DONE]"]
        assert chunks[1]["choices"][0]["delta"] == {"content": "SYSTEM: BE.\nUSER: HELLO YOU"}
        complete(client, "x", max_tokens=3, max_completion_tokens=4, stop="S")
        assert Upper.last.events[-1][1] == {"text": "x", "max_new_tokens": 4, "stop": ["S"]}


@pytest.mark.parametrize("prompt", ["Once", "Once upon a time", "", "O"])
def test_the_prompt_in_front_and_the_stop_behind_are_cut(prompt: str) -> None:
    with serving(Continuation) as client:
        answer = complete(client, prompt, stop=["END", "never"]).json()
        assert answer["choices"][0]["text"] == " and so on. "
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert complete(client, prompt).json()["choices"][0]["text"].endswith("END never seen")
        assert streamed_text(complete(client, prompt, stream=True, stop="END")) == " and so on. "
        whole = streamed_text(complete(client, prompt, stream=True))
        assert whole == " and so on. END never seen"


class Templated(Upper):
    class tokenizer:
        chat_template = "x"

        @staticmethod
        def encode(text: str, add_special_tokens: bool = True) -> list[int]:
            return [1] * (len(text) + 10 * add_special_tokens)

        @staticmethod
        def apply_chat_template(messages: Any, **options: Any) -> str:
            assert options == {"tokenize": False, "add_generation_prompt": True}
            if len(messages) > 1:
                raise TemplateError("roles must alternate")
            return f"<{messages[0]['content']}>"


class TemplateError(Exception):
    pass


def test_the_classs_tokenizer_renders_chats_and_counts() -> None:
    with serving(Templated) as client:
        body = {"model": "sample", "messages": HI[1:], "max_tokens": 11}
        answer = client.post("/v1/chat/completions", json=body).json()
        assert answer["choices"][0]["message"]["content"] == "<HELLO YOU>"
        usage = {"prompt_tokens": 11, "completion_tokens": 11, "total_tokens": 22}
        assert answer["usage"] == usage
        assert answer["choices"][0]["finish_reason"] == "length"
        assert complete(client, "abc").json()["usage"]["prompt_tokens"] == 13
        refused = client.post("/v1/chat/completions", json=body | {"messages": HI})
        assert refused.status_code == 400
        error = refused.json()["error"]
        assert error["message"] == "the chat template refuses the messages: roles must alternate"
        assert error["param"] == "messages"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("number", "Misbehaving.infer returned int; a text-generation model returns {'text': str}"),
        ("none", "Misbehaving.infer returned NoneType; "),
        ("empty", "Misbehaving.infer returned a dict with nothing in it; "),
        ("bytes", "Misbehaving.infer returned a dict whose 'text' is bytes; "),
        ("reason", "Misbehaving.infer gave finish_reason 'tired'; it is one of stop, length"),
        ("generator", "Misbehaving.infer returned a generator; name the method that yields"),
    ],
)
def test_a_wrong_return_value_is_named(prompt: str, message: str) -> None:
    with serving(Misbehaving) as client:
        answer = complete(client, prompt)
        assert answer.status_code == 500
        assert answer.json()["error"]["message"].startswith(message)


@pytest.mark.parametrize("prompt", ["error", "exit", "stop"])
def test_a_failure_is_500_with_the_request_id_and_no_internals(
    prompt: str, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(Misbehaving) as client:
        answer = client.post(
            "/v1/completions",
            json={"model": "sample", "prompt": prompt},
            headers={"x-request-id": "req-77"},
        )
        assert answer.status_code == 500
        assert answer.json()["error"] == {
            "message": "the model 'sample' failed; its log has the cause under request id req-77",
            "type": "server_error",
            "param": None,
            "code": None,
        }
        assert complete(client, "coroutine").json()["choices"][0]["text"] == "later"
    [record] = [record for record in caplog.records if "req-77" in record.getMessage()]
    assert record.exc_info is not None
    assert "Misbehaving" in record.getMessage()


def test_a_class_may_refuse_a_field() -> None:
    with serving(Misbehaving) as client:
        for stream in (False, True):
            answer = complete(client, "refuse", stream=stream)
            assert answer.status_code == 400
            assert answer.json()["error"]["param"] == "seed"
            assert answer.json()["error"]["message"] == "`seed` cannot be honored"


def test_a_stream_that_fails_on_the_way_ends_with_an_error_event() -> None:
    with serving(Misbehaving) as client:
        for prompt, message in [
            ("late error", "the model 'sample' failed; its log has the cause under request id"),
            ("number", "Misbehaving.stream yielded int; a text-generation model yields"),
        ]:
            got = events(complete(client, prompt, stream=True))
            assert got[0]["choices"][0]["text"] == "first "
            assert got[-1]["error"]["message"].startswith(message)
            assert "secret" not in json.dumps(got)
        answer = complete(client, "list", stream=True)
        assert answer.status_code == 500
        assert answer.json()["error"]["message"].startswith("Misbehaving.stream returned a list; ")


def test_half_a_surrogate_pair_does_not_break_the_answer() -> None:
    with serving(Misbehaving) as client:
        assert complete(client, "surrogate").json()["choices"][0]["text"] == "a?b"


class Everything(Base):
    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        self.events.append(inputs)
        return {
            "array": numpy.arange(6, dtype=">i2").reshape(2, 3),
            "image": Image.new("RGB", (2, 1), (255, 0, 0)),
            "scalar": numpy.float32(0.5),
            "kinds": sorted(type(value).__name__ for value in inputs.values()),
        }


def test_images_and_arrays_travel_both_ways() -> None:
    with serving(Everything, {"task": "tensor"}) as client:
        answer = client.post("/v1/infer", json={"model": "sample", "inputs": {}}).json()
        assert answer["model"] == "sample"
        outputs = answer["outputs"]
        data = base64.b64encode(numpy.arange(6, dtype="<i2").tobytes()).decode()
        assert outputs["array"] == {"shape": [2, 3], "dtype": "int16", "b64": data}
        assert outputs["image"]["format"] == "png"
        assert base64.b64decode(outputs["image"]["b64_json"]).startswith(b"\x89PNG")
        assert outputs["scalar"] == 0.5
        inputs = {"a": outputs["array"], "b": outputs["image"], "c": [1]}
        back = client.post("/v1/infer", json={"model": "sample", "inputs": inputs}).json()
        assert back["outputs"]["kinds"] == ["PngImageFile", "list", "ndarray"]
        assert Everything.last.events[-1]["a"].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    "value",
    [
        {"shape": [9], "dtype": "int16", "b64": "AAA="},
        {"shape": [1], "dtype": "object", "b64": "AAA="},
        {"shape": [1], "dtype": "f4," * 100_000, "b64": "AAA="},
        {"shape": [1], "dtype": ["f4"], "b64": "AAA="},
        {"shape": [1], "dtype": "int16", "b64": "?"},
        {"shape": 1, "dtype": 5, "b64": 5},
        {"b64_json": "AAA=", "format": "png"},
        {"b64_json": "AAA=", "format": 3},
        {"b64_json": None, "format": "png"},
    ],
)
def test_a_damaged_array_or_image_is_400(value: Any) -> None:
    with serving(Everything, {"task": "tensor"}) as client:
        answer = client.post("/v1/infer", json={"model": "sample", "inputs": {"x": [value]}})
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["param"] == "inputs.x[0]"
        assert len(error["message"]) < 200


def test_an_image_of_another_format_says_so() -> None:
    with serving(Everything, {"task": "tensor"}) as client:
        for data in (encode(Image.new("L", (2, 2)), "JPEG"), b"<html>"):
            body = {"model": "sample", "inputs": {"x": as_input(data)}}
            answer = client.post("/v1/infer", json=body)
            assert answer.status_code == 400
            assert answer.json()["error"]["message"] == (
                "`inputs.x` cannot be read: it is not a PNG image; `format` must be the file's own"
            )


def as_input(data: bytes, form: str = "png") -> dict[str, str]:
    return {"b64_json": base64.b64encode(data).decode(), "format": form}


def test_the_images_of_a_request_have_a_limit_together() -> None:
    half = encode(Image.new("1", (5000, 9000)))
    with serving(Everything, {"task": "tensor"}) as client:
        for inputs, place in (
            ({"a": as_input(half), "b": [{"c": as_input(half)}]}, "inputs.b[0].c"),
            ({"a": as_input(bomb(9000, 10_000))}, "inputs.a"),
            ({"a": as_input(bomb(30_000, 30_000))}, "inputs.a"),
        ):
            answer = client.post("/v1/infer", json={"model": "sample", "inputs": inputs})
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (413, "image_too_large")
            assert error["param"] == place
            assert "more than 89478485 pixels together" in error["message"]
        for _ in range(2):  # of each request by itself
            body = {"model": "sample", "inputs": {"a": as_input(half)}}
            assert client.post("/v1/infer", json=body).status_code == 200


def test_a_jpeg_of_very_many_scans_is_not_decoded() -> None:
    inputs = {"a": as_input(jpeg_of_scans(MAX_SCANS + 1), "jpeg")}
    with serving(Everything, {"task": "tensor"}) as client:
        answer = client.post("/v1/infer", json={"model": "sample", "inputs": inputs})
    assert answer.status_code == 400
    assert "JPEG of more than 100 scans" in answer.json()["error"]["message"]


class Unsendable(Base):
    def infer(self, inputs: dict[str, Any]) -> Any:
        if inputs.get("kind") == "longdouble":
            return numpy.longdouble(1)
        if inputs.get("kind") == "image":
            return Image.open(io.BytesIO(encode(create_image(200, 200), "JPEG")[:900]))
        if inputs.get("kind") == "nan":
            return {"scores": [1.0, {"b": numpy.float32("nan")}], "none": None}
        if inputs.get("kind") == "infinity":
            return {"\ud800": -math.inf}
        return {"lock": self.release}


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        (None, "a threading.Event"),
        ("longdouble", "a numpy.longdouble"),
        ("image", "image file is truncated"),
        ("nan", "the number nan, which only an array carries"),
        ("infinity", "the number -inf, which only an array carries"),
    ],
)
def test_outputs_that_json_cannot_carry_are_named(kind: str | None, named: str) -> None:
    with serving(Unsendable) as client:
        answer = client.post("/v1/infer", json={"model": "sample", "inputs": {"kind": kind}})
        assert answer.status_code == 500
        message = answer.json()["error"]["message"]
        assert message.startswith(f"Unsendable.infer returned what JSON cannot represent: {named}")


class Odd(Base):
    def infer(self, inputs: dict[str, Any]) -> Any:
        raise RequestError(None, param=5, code=7)  # type: ignore[arg-type]


def test_an_error_that_was_raised_with_other_values_is_an_envelope_of_texts() -> None:
    with serving(Odd) as client:
        answer = client.post("/v1/infer", json={"model": "sample", "inputs": {}})
        assert answer.status_code == 400
        error = {"message": "RequestError", "type": "invalid_request_error"}
        assert answer.json()["error"] == {**error, "param": "5", "code": "7"}


def test_infer_streams_any_value() -> None:
    with serving(Ticks) as client:
        inputs = {"max_new_tokens": 2}
        body = {"model": "sample", "inputs": inputs, "stream": True}
        got = events(client.post("/v1/infer", json=body))
        assert got == [
            {"model": "sample", "outputs": {"text": "0 "}},
            {"model": "sample", "outputs": {"text": "1 "}},
            "[DONE]",
        ]


def test_other_tasks_have_no_text_routes() -> None:
    with serving(Upper, {"task": "tensor"}) as client:
        answer = complete(client, "x")
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["message"] == "the model 'sample' has task tensor, which has no text routes"
        assert error["code"] == "unsupported"


def test_the_mount_path_is_taken_off_and_head_works() -> None:
    app = create_app(spec_of(Upper), {}, name="sample")

    async def mounted(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            scope = {**scope, "root_path": "/models/sample"}
        await app(scope, receive, send)

    with serve_asgi(mounted, lifespan="on") as url:
        assert httpx.get(f"{url}/models/sample/health").json() == {"status": "ok"}
        assert httpx.get(f"{url}/health").json() == {"status": "ok"}
        assert httpx.get(f"{url}/models/sampler/health").status_code == 404
        head = httpx.head(f"{url}/models/sample/v1/models")
        assert (head.status_code, head.content) == (200, b"")


class Sick(Upper):
    def check_health(self) -> None:
        raise RuntimeError("the engine is dead")


def test_health_tells_a_sick_model() -> None:
    with serving(Sick) as client:
        answer = client.get("/health")
        assert answer.status_code == 503
        assert answer.json()["error"]["message"] == "the model 'sample' is not healthy"


def test_a_websocket_is_refused_in_words() -> None:
    app = create_app(spec_of(Upper), {}, name="sample")
    key = base64.b64encode(b"0123456789abcdef").decode()
    headers = {
        "connection": "upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": key,
    }
    with serve_asgi(app, lifespan="on") as url:
        answer = httpx.get(f"{url}/v1/infer", headers=headers)
        assert answer.status_code in (404, 405)
        assert httpx.get(f"{url}/health").status_code == 200
