"""The embedding route for classes as users write them: shapes, counts and refusals over HTTP."""

from __future__ import annotations

import array
import base64
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy
import openai
import pytest

from tests.support.sample_models import Base, spec_of
from tests.support.servers import serve_asgi
from truthgpt_serve.errors import RequestError
from truthgpt_serve.server import create_app


class Counter:
    def encode(self, text: str) -> list[str]:
        return text.split()


class Letters(Base):
    """Counts letters; a list of numbers."""

    tokenizer = Counter()

    def infer(self, inputs: dict[str, Any]) -> Any:
        self.events.append(inputs)
        text = inputs["text"]
        if text == "bad":
            raise RequestError("that text is bad", param="input")
        return {"embedding": [text.count(letter) for letter in "abc"]}


@contextmanager
def serving(cls: type, **serving: Any) -> Iterator[openai.OpenAI]:
    cfg = {"task": "embedding", "serving": serving}
    app = create_app(spec_of(cls), cfg, name="sample")
    with (
        serve_asgi(app, lifespan="on") as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=20) as client,
    ):
        yield client


def post(client: openai.OpenAI, **fields: Any) -> httpx.Response:
    body = {"model": "sample", "input": "abc", **fields}
    return httpx.post(f"{client.base_url}embeddings", json=body)


def test_a_class_with_infer_only() -> None:
    with serving(Letters) as client:
        answer = client.embeddings.create(model="sample", input=["a b", "c c c", "x"])
        assert [item.embedding for item in answer.data] == [[1, 1, 0], [0, 0, 3], [0, 0, 0]]
        assert [item.index for item in answer.data] == [0, 1, 2]
        assert answer.usage.prompt_tokens == 6
        assert Letters.last.events[-1].keys() == {"text"}
        raw = post(client, encoding_format="base64").json()
        assert raw["data"][0]["embedding"] == base64.b64encode(array.array("f", [1, 1, 1])).decode()
        assert post(client).json()["data"] == [
            {"object": "embedding", "index": 0, "embedding": [1.0, 1.0, 1.0]}
        ]


def test_one_bad_text_fails_its_request_only() -> None:
    with serving(Letters) as client:
        with pytest.raises(openai.BadRequestError, match="that text is bad"):
            client.embeddings.create(model="sample", input=["a", "bad", "b"])
        assert client.embeddings.create(model="sample", input="a").data[0].embedding == [1, 0, 0]


def test_a_long_list_is_no_overload() -> None:
    with serving(Letters, max_ongoing_requests=1, max_queued_requests=1) as client:
        answer = client.embeddings.create(model="sample", input=["a" * n for n in range(1, 301)])
        assert [item.embedding[0] for item in answer.data] == list(range(1, 301))


class Arrays(Base):
    """Gives what the text names."""

    values: Any = None

    def infer(self, inputs: dict[str, Any]) -> Any:
        kinds: dict[str, Any] = {
            "numpy": {"embedding": numpy.array([1, 2], "float64"), "num_tokens": 5},
            "bare": numpy.array([1, 2], "float16"),
            "matrix": {"embedding": numpy.zeros((2, 2))},
            "text": {"embedding": "1 2"},
            "none": None,
            "empty": {"embedding": []},
            "nan": {"embedding": [1.0, float("nan")]},
            "words": {"embedding": ["a"]},
        }
        return kinds[inputs["text"]]


def test_arrays_and_wrong_returns() -> None:
    with serving(Arrays) as client:
        for kind in ("numpy", "bare"):
            answer = client.embeddings.create(model="sample", input=kind)
            assert answer.data[0].embedding == [1, 2]
        assert post(client, input="numpy").json()["usage"]["total_tokens"] == 5
        assert "usage" not in post(client, input="bare").json(), "no tokenizer counts"
        for kind in ("matrix", "text", "none", "empty", "nan", "words"):
            refused = post(client, input=kind)
            assert refused.status_code == 500
            assert refused.json()["error"]["message"].startswith("Arrays returned ")


def test_what_the_class_cannot_do_is_refused() -> None:
    with serving(Letters) as client:
        with pytest.raises(openai.BadRequestError, match="takes texts, not token ids"):
            client.embeddings.create(model="sample", input=[1, 2, 3])
        with pytest.raises(openai.BadRequestError, match="`dimensions` is 2, but this model's"):
            client.embeddings.create(model="sample", input="a", dimensions=2)
        assert client.embeddings.create(model="sample", input="a", dimensions=3).data
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model="other", input="a")
        for fields, param in (
            ({"input": None}, "input"),
            ({"input": 5}, "input"),
            ({"input": [True]}, "input[0]"),
            ({"input": ["a", ""]}, "input[1]"),
            ({"input": ["a"] * 2049}, "input"),
            ({"encoding_format": "hex"}, "encoding_format"),
            ({"dimensions": 0}, "dimensions"),
            ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
            ({"model": 3}, "model"),
        ):
            refused = post(client, **fields)
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


def test_another_task_has_no_embeddings() -> None:
    app = create_app(spec_of(Letters), {"task": "custom"}, name="sample")
    with serve_asgi(app, lifespan="on") as url:
        body = {"model": "sample", "input": "a"}
        answer = httpx.post(f"{url}/v1/embeddings", json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["message"].endswith("which has no embedding route")


class Batches(Base):
    """Waits until it is released, so that a batch can gather."""

    def infer(self, inputs: dict[str, Any]) -> Any:
        return self.infer_batch([inputs])[0]

    def infer_batch(self, batch: list[Any]) -> list[Any]:
        self.events.append(len(batch))
        if len(self.events) == 2:  # `load` is the first
            self.release.wait(10)
        return [{"embedding": [float(len(inputs["text"]))]} for inputs in batch]


def test_texts_of_several_requests_share_a_batch() -> None:
    with serving(Batches, batching={"max_batch_size": 64}) as client:
        found: dict[int, Any] = {}

        def ask(number: int) -> None:
            texts = ["x" * (number + 1)] * 8
            answer = client.embeddings.create(model="sample", input=texts)
            found[number] = [item.embedding for item in answer.data]

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(5)]
        for thread in threads:
            thread.start()
        threading.Timer(0.5, lambda: Batches.last.release.set()).start()
        for thread in threads:
            thread.join(20)
        assert found == {number: [[number + 1.0]] * 8 for number in range(5)}
        assert sum(Batches.last.events[1:]) == 40
        assert len(Batches.last.events[1:]) <= 4
