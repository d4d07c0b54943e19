"""What requests to classes as users write them use, counted behind the gate's limits."""

from __future__ import annotations

import base64
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.image_classes import Plain as Painter
from tests.support.sample_models import Base, spec_of, wait_until
from tests.support.servers import serve_asgi
from truthgpt_serve.access.gate import OPEN_AT_MODEL, Gate
from truthgpt_serve.access.key_edit import add_key
from truthgpt_serve.access.key_ring import KeyRing
from truthgpt_serve.access.meter import Ended, Meter
from truthgpt_serve.access.quota import Quota
from truthgpt_serve.access.token_quota import TokenQuota
from truthgpt_serve.errors import RequestError
from truthgpt_serve.server import create_app
from truthgpt_serve.server.bounded import BoundedRequests

PROMPT = "one two three"


class Words:
    def encode(self, text: str) -> list[str]:
        return text.split()


class Whole(Base):
    tokenizer = Words()

    def infer(self, inputs: dict[str, Any]) -> Any:
        return {"text": "four five"}


class Streamed(Whole):
    def stream(self, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for _ in range(40):
            time.sleep(0.02)
            yield {"text": "word "}
        yield {"text": "", "finish_reason": "length"}


class Breaking(Whole):
    def stream(self, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield {"text": "word "}
        raise LookupError("the weights are gone")


class Slow(Whole):
    def infer(self, inputs: dict[str, Any]) -> Any:
        time.sleep(4)
        return {"text": "four five"}


class Failing(Whole):
    def infer(self, inputs: dict[str, Any]) -> Any:
        raise RequestError("no")


class Telling(Whole):
    def infer(self, inputs: dict[str, Any]) -> Any:
        return {"text": "x", "usage": {"prompt_tokens": 30, "completion_tokens": 40}}


class Vectors(Whole):
    def infer(self, inputs: dict[str, Any]) -> Any:
        return {"embedding": [1.0], "num_tokens": len(inputs["text"].split())}


class Hearing(Base):
    operations: tuple[str, ...] = ("transcription",)

    def infer(self, inputs: dict[str, Any]) -> Any:
        if inputs.get("prompt") == "fail":
            raise RequestError("no")
        return {"text": "heard"}

    def stream(self, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield self.infer(inputs)


class Deaf(Hearing):
    operations = ()


@contextmanager
def serving(
    folder: Path, cls: type, task: str = "text-generation", **limits: Any
) -> Iterator[tuple[httpx.Client, list[Ended]]]:
    """Serves a class behind the gate and limits of a key; yields a client with the key."""
    key = add_key(folder / "keys.yaml", {"name": "team", **limits})
    ring, quota = KeyRing(folder / "keys.yaml"), Quota(folder / "keys.yaml", "sample")
    told: list[Ended] = []
    app: Any = create_app(spec_of(cls), {"task": task}, name="sample")
    counted = TokenQuota(app, quota)
    app = BoundedRequests(counted, "sample", max_body_bytes=1 << 20, max_request_s=20)
    app = Gate(app, ring, OPEN_AT_MODEL, names=["sample"], meter=Meter(quota, told.append))
    headers = {"authorization": f"Bearer {key}"}
    with (
        serve_asgi(app, lifespan="on") as url,
        httpx.Client(base_url=url, headers=headers, timeout=20) as client,
    ):
        yield client, told
    ring.close()
    quota.close()


@pytest.fixture(autouse=True)
def own_counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def complete(client: httpx.Client, **fields: Any) -> httpx.Response:
    body = {"model": "sample", "prompt": PROMPT, **fields}
    return client.post("/v1/completions", json=body)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("cls", "tokens"), [(Whole, (3, 2)), (Telling, (30, 40))])
def test_text(tmp_path: Path, cls: type, tokens: tuple[int, int], stream: bool) -> None:
    with serving(tmp_path, cls) as (client, told):
        assert complete(client, stream=stream).status_code == 200
    (ended,) = told
    assert (ended.usage.prompt_tokens, ended.usage.completion_tokens) == tokens
    assert ended.outcome == "ok"


def test_a_stream_to_its_end_and_one_whose_client_leaves(tmp_path: Path) -> None:
    with serving(tmp_path, Streamed) as (client, told):
        complete(client, stream=True)
        body = {"model": "sample", "prompt": PROMPT, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as answer:
            next(answer.iter_lines())
        deadline = time.monotonic() + 10
        while len(told) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    whole, left = told
    assert (whole.usage.completion_tokens, whole.outcome) == (40, "ok")
    assert left.outcome == "cancelled"
    assert 1 <= left.usage.completion_tokens < 30
    assert left.usage.prompt_tokens == len(PROMPT) // 4


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/completions", {"prompt": PROMPT}),
        ("/v1/responses", {"input": PROMPT}),
        ("/v1/messages", {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 9}),
    ],
)
def test_a_stream_that_ends_with_an_error_is_one(
    tmp_path: Path, path: str, asked: dict[str, Any]
) -> None:
    with serving(tmp_path, Breaking) as (client, told):
        answer = client.post(path, json={"model": "sample", "stream": True, **asked})
    assert answer.status_code == 200
    assert "failed; its log has the cause" in answer.text.splitlines()[-2]
    (ended,) = told
    assert (ended.status, ended.outcome) == (200, "error")


def test_a_client_that_does_not_wait_for_a_whole_answer(tmp_path: Path) -> None:
    """Its prompt counts; a request that fails has no answer to wait for."""
    with serving(tmp_path, Slow) as (client, told):
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/completions", json={"model": "sample", "prompt": PROMPT}, timeout=1)
        wait_until(lambda: len(told) == 1)
    assert told[0].outcome == "cancelled"
    assert told[0].usage.prompt_tokens == len(PROMPT) // 4
    (tmp_path / "keys.yaml").unlink()
    with serving(tmp_path, Failing) as (client, told):
        assert complete(client).status_code == 400
    assert told[0].usage.prompt_tokens == 0


def test_tokens_of_a_minute(tmp_path: Path) -> None:
    with serving(tmp_path, Telling, tokens_per_minute=150) as (client, told):
        first = complete(client, max_tokens=10)
        assert first.status_code == 200
        assert complete(client, max_tokens=10).headers["x-ratelimit-remaining-tokens"].isdigit()
        refused = complete(client, max_tokens=10)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert 55 <= int(refused.headers["retry-after"]) <= 61
        assert refused.headers["x-ratelimit-remaining-tokens"] == "10"
        assert client.get("/v1/models").status_code == 200
        bad = complete(client, max_tokens="x")
        assert bad.status_code in (400, 429)
    assert [ended.outcome for ended in told][:3] == ["ok", "ok", "refused"]


def test_embeddings(tmp_path: Path) -> None:
    with serving(tmp_path, Vectors, "embedding") as (client, told):
        body = {"model": "sample", "input": ["one two", "three"]}
        assert client.post("/v1/embeddings", json=body).status_code == 200
    assert told[0].usage.prompt_tokens == 3


def test_images(tmp_path: Path) -> None:
    limit = {"image_megapixel_steps_per_minute": 40}
    with serving(tmp_path, Painter, "image-generation", **limit) as (client, told):
        body = {"model": "sample", "prompt": "red", "size": "500x400", "steps": 50, "n": 2}
        answer = client.post("/v1/images/generations", json=body)
        assert answer.status_code == 200
        assert answer.headers["x-ratelimit-remaining-image-megapixel-steps"] == "20"
        assert client.post("/v1/images/generations", json=body).status_code == 200
        refused = client.post("/v1/images/generations", json=body)
        assert refused.status_code == 429
        assert "40 denoising steps times megapixels" in refused.json()["error"]["message"]
    assert (told[0].usage.images, told[0].usage.megapixel_steps) == (2, 20)
    assert told[-1].usage.images == 0


class Stepping(Painter):
    default_steps: int | None = 100

    def stream(self, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for step in range(inputs["steps"]):
            time.sleep(0.02)
            yield {"step": step + 1, "num_steps": inputs["steps"]}
        yield {"image": self.infer(inputs)["image"], "num_steps": inputs["steps"] // 2}


def test_an_image_whose_client_leaves_counts_with_the_steps_made(tmp_path: Path) -> None:
    body = {"model": "sample", "prompt": "red", "size": "500x400", "stream": True}
    with serving(tmp_path, Stepping, "image-generation") as (client, told):
        shown = {**body, "progress": True}
        with client.stream("POST", "/v1/images/generations", json=shown) as answer:
            lines = answer.iter_lines()
            while '"step": 5' not in (line := next(lines)) and '"step":5' not in line:
                pass
        wait_until(lambda: len(told) == 1)
        whole = client.post("/v1/images/generations", json={**body, "steps": 10})
        assert whole.status_code == 200
        wait_until(lambda: len(told) == 2)
    left, ended = (each.usage for each in told)
    assert told[0].outcome == "cancelled"
    assert left.images == 0
    assert 5 * 0.2 <= left.megapixel_steps <= 60 * 0.2
    assert ended.images == 1
    assert ended.megapixel_steps == pytest.approx(5 * 0.2)  # as it says


def infer(client: httpx.Client, **inputs: Any) -> httpx.Response:
    stream = inputs.pop("stream", False)
    return client.post("/v1/infer", json={"model": "sample", "inputs": inputs, "stream": stream})


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("cls", "task", "tokens"),
    [
        (Whole, "text-generation", (3, 2)),
        (Streamed, "text-generation", (3, 40)),
        (Telling, "text-generation", (30, 40)),
        (Vectors, "embedding", (3, 0)),
    ],
)
def test_infer_counts_as_the_tasks_own_routes(
    tmp_path: Path, cls: type, task: str, tokens: tuple[int, int], stream: bool
) -> None:
    if cls is Streamed and not stream:
        return
    with serving(tmp_path, cls, task) as (client, told):
        assert infer(client, text=PROMPT, stream=stream).status_code == 200
    (ended,) = told
    assert (ended.usage.prompt_tokens, ended.usage.completion_tokens) == tokens


def test_infer_whose_client_leaves_or_that_fails(tmp_path: Path) -> None:
    body = {"model": "sample", "inputs": {"text": PROMPT}, "stream": True}
    with serving(tmp_path, Streamed) as (client, told):
        with client.stream("POST", "/v1/infer", json=body) as answer:
            next(answer.iter_lines())
        wait_until(lambda: len(told) == 1)
    assert 1 <= told[0].usage.completion_tokens < 30
    assert told[0].usage.prompt_tokens == len(PROMPT) // 4
    (tmp_path / "keys.yaml").unlink()
    with serving(tmp_path, Failing) as (client, told):
        assert infer(client, text=PROMPT).status_code == 400
    assert told[0].usage.prompt_tokens == 0


def test_images_over_infer(tmp_path: Path) -> None:
    """They are held to the limit before the work, too."""
    limit = {"image_megapixel_steps_per_minute": 20}
    inputs = {"prompt": "red", "width": 500, "height": 400, "steps": 50}
    with serving(tmp_path, Painter, "image-generation", **limit) as (client, told):
        assert infer(client, **inputs).status_code == 200
        assert infer(client, **inputs, stream=True).status_code == 200
        assert infer(client, **inputs).status_code == 429
        assert infer(client, prompt="red", width="wide", steps=-1).status_code == 429
    assert [(each.usage.images, each.usage.megapixel_steps) for each in told[:2]] == [(1, 10)] * 2
    assert told[2].usage.images == 0


def test_steps_over_infer_whose_client_leaves(tmp_path: Path) -> None:
    inputs = {"prompt": "red", "width": 500, "height": 400, "steps": 100}
    body = {"model": "sample", "inputs": inputs, "stream": True}
    with serving(tmp_path, Stepping, "image-generation") as (client, told):
        with client.stream("POST", "/v1/infer", json=body) as answer:
            lines = answer.iter_lines()
            while '"step":5' not in next(lines).replace(" ", ""):
                pass
        wait_until(lambda: len(told) == 1)
    assert told[0].usage.images == 0
    assert 5 * 0.2 <= told[0].usage.megapixel_steps <= 60 * 0.2


class Sized(Stepping):
    """Chooses steps and size itself, and says what they will be."""

    default_steps = None

    def expected_work(self, inputs: dict[str, Any]) -> tuple[int, int]:
        return inputs.get("steps", 100), 500 * 400

    def stream(self, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        return super().stream({"steps": 100, "width": 500, "height": 400, **inputs})


@pytest.mark.parametrize("path", ["/v1/images/generations", "/v1/infer"])
def test_a_class_that_chooses_steps_and_size(tmp_path: Path, path: str) -> None:
    """The limit holds before the work, and what was made counts with its own size."""
    limit = {"image_megapixel_steps_per_minute": 35}
    body = {"model": "sample", "prompt": "red", "stream": True, "progress": True}
    if path == "/v1/infer":
        body = {"model": "sample", "inputs": {"prompt": "red"}, "stream": True}
    with serving(tmp_path, Sized, "image-generation", **limit) as (client, told):
        with client.stream("POST", path, json=body) as first:
            lines = first.iter_lines()
            while '"step":5' not in next(lines).replace(" ", ""):
                pass
            assert client.post(path, json=body).status_code == 429
        wait_until(lambda: len(told) == 2)
    assert told[1].outcome == "cancelled"
    assert 5 * 0.2 <= told[1].usage.megapixel_steps <= 60 * 0.2


def recording(num_samples: int, **inputs: Any) -> dict[str, Any]:
    data = base64.b64encode(bytes(2 * num_samples)).decode()
    return {"audio": {"shape": [num_samples], "dtype": "float16", "b64": data}, **inputs}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("inputs", "seconds"),
    [
        (recording(8000), 0.5),
        (recording(8000, sampling_rate=8000), 1.0),
        (recording(8000, sampling_rate="x"), 0.0),
        (recording(8000, prompt="fail"), 0.0),
        ({"audio": {"shape": [True], "dtype": "int8", "b64": ""}}, 0.0),
        ({"audio": [0.0]}, 0.0),
    ],
)
def test_seconds_of_a_recording_over_infer(
    tmp_path: Path, inputs: dict[str, Any], seconds: float, stream: bool
) -> None:
    with serving(tmp_path, Hearing, "custom") as (client, told):
        infer(client, **inputs, stream=stream)
        wait_until(lambda: bool(told))
    assert told[-1].usage.audio_s == seconds


def test_a_class_that_recognizes_no_speech_has_no_seconds(tmp_path: Path) -> None:
    with serving(tmp_path, Deaf, "custom") as (client, told):
        assert infer(client, **recording(8000)).status_code == 200
        wait_until(lambda: bool(told))
    assert told[-1].usage.audio_s == 0
