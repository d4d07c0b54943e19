"""Streams of image events, many images at once, and clients that leave."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types import (
    ImageEditCompletedEvent,
    ImageEditPartialImageEvent,
    ImageGenCompletedEvent,
    ImageGenPartialImageEvent,
)

from tests.support.image_classes import Plain, Studio, Waiting
from tests.support.image_files import mask_png, png
from tests.support.sample_models import wait_until
from tests.unit.server.images.test_routes import PROMPT, image_server, opened


@pytest.fixture(scope="module")
def studio() -> Iterator[openai.OpenAI]:
    with image_server(Studio) as client:
        yield client


def events_of(answer: httpx.Response) -> list[tuple[str, dict[str, Any]]]:
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = []
    for text in answer.text.strip().split("\n\n"):
        name, data = text.split("\n")
        events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return events


def test_a_stream_of_generations(studio: openai.OpenAI) -> None:
    before = int(time.time())
    events = list(
        studio.images.generate(
            model="painter",
            prompt=PROMPT,
            stream=True,
            partial_images=2,
            quality="medium",
            output_format="webp",
            extra_body={"seed": 9, "steps": 5},
        )
    )
    partials, [done] = events[:-1], events[-1:]
    for index, event in enumerate(partials):
        assert isinstance(event, ImageGenPartialImageEvent)
        assert event.type == "image_generation.partial_image"
        assert event.partial_image_index == index
        assert event.size == "8x8"
        assert opened(event.b64_json).format == "WEBP"
    assert len(partials) == 2
    assert isinstance(done, ImageGenCompletedEvent)
    assert done.type == "image_generation.completed"
    assert before <= done.created_at <= time.time()
    assert (done.background, done.output_format, done.quality) == ("opaque", "webp", "medium")
    assert done.size == "48x32"
    assert done.usage.input_tokens == 3
    assert done.usage.total_tokens == 10
    assert done.to_dict()["seed"] == 9
    assert opened(done.b64_json).size == (48, 32)
    assert Studio.last.inputs[-1]["partial_images"] == 2
    for event in events:
        type(event).model_validate(event.to_dict())


def test_a_stream_of_edits(studio: openai.OpenAI) -> None:
    events = list(
        studio.images.edit(
            model="painter",
            image=[png(), png()],
            mask=mask_png(),
            prompt=PROMPT,
            stream=True,
            partial_images=1,
        )
    )
    partial, done = events
    assert isinstance(partial, ImageEditPartialImageEvent)
    assert isinstance(done, ImageEditCompletedEvent)
    assert (partial.type, done.type) == ("image_edit.partial_image", "image_edit.completed")
    assert opened(done.b64_json).size == (40, 30)
    for event in events:
        type(event).model_validate(event.to_dict())


def test_without_progress_only_openais_events_come(studio: openai.OpenAI) -> None:
    body = {"model": "painter", "prompt": PROMPT, "stream": True}
    events = events_of(httpx.post(f"{studio.base_url}images/generations", json=body))
    assert [name for name, _ in events] == ["image_generation.completed"]
    assert set(events[0][1]) == {
        "type", "b64_json", "created_at", "output_format", "quality", "size", "background",
        "usage", "index", "seed",
    }  # fmt: skip


def test_progress_tells_the_place_and_each_step(studio: openai.OpenAI) -> None:
    body = {"model": "painter", "prompt": PROMPT, "stream": True, "progress": True, "steps": 3}
    events = events_of(httpx.post(f"{studio.base_url}images/generations", json=body))
    assert all(name == event["type"] for name, event in events)
    *progress, done = [event for _, event in events]
    assert done["type"] == "image_generation.completed"
    assert {event["type"] for event in progress} == {"image_generation.progress"}
    assert [event.get("queue_position") for event in progress] == [2, None, None, None]
    assert [(event.get("step"), event.get("num_steps")) for event in progress[1:]] == [
        (1, 3),
        (2, 3),
        (3, 3),
    ]


def test_openais_client_reads_a_stream_with_progress(studio: openai.OpenAI) -> None:
    stream = studio.images.edit(
        model="painter",
        image=png(),
        prompt=PROMPT,
        stream=True,
        extra_body={"progress": True, "steps": 2},
    )
    kinds = [event.type for event in stream]
    assert kinds == [*["image_edit.progress"] * 3, "image_edit.completed"]


def test_several_images_stream_with_their_index(studio: openai.OpenAI) -> None:
    stream = studio.images.generate(
        model="painter",
        prompt=PROMPT,
        n=3,
        stream=True,
        partial_images=1,
        extra_body={"seed": 20},
    )
    events: list[dict[str, Any]] = [event.to_dict() for event in stream]
    done = {event["index"]: event for event in events if event["type"].endswith("completed")}
    partial = [event["index"] for event in events if event["type"].endswith("partial_image")]
    assert sorted(partial) == [0, 1, 2]
    assert sorted(done) == [0, 1, 2]
    for index, event in done.items():
        assert event["seed"] == 20 + index
        pixel: Any = opened(event["b64_json"]).getpixel((5, 5))
        assert pixel[0] == 20 + index


def test_a_class_without_stream_streams_its_result() -> None:
    with image_server(Plain) as client:
        [event] = client.images.generate(
            model="painter", prompt=PROMPT, stream=True, partial_images=3
        )
    assert isinstance(event, ImageGenCompletedEvent)
    assert event.usage is None
    assert opened(event.b64_json).size == (48, 32)


def test_an_early_error_has_its_own_status(studio: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="there is no scheduler 'unknown'"):
        studio.images.generate(
            model="painter", prompt=PROMPT, stream=True, extra_body={"scheduler": "unknown"}
        )


def test_a_late_error_ends_the_stream(studio: openai.OpenAI) -> None:
    events: list[Any] = []
    stream = studio.images.generate(
        model="painter",
        prompt=PROMPT,
        stream=True,
        partial_images=1,
        extra_body={"scheduler": "unknown"},
    )
    with pytest.raises(openai.APIError, match="there is no scheduler 'unknown'"):
        events.extend(stream)
    assert [event.type for event in events] == ["image_generation.partial_image"]


# -- several at once


def test_the_images_of_a_request_run_at_the_same_time() -> None:
    with image_server(Waiting, {"max_ongoing_requests": 8}) as client:
        timer = threading.Timer(0.5, lambda: Waiting.last.release.set())
        timer.start()
        answer = client.images.generate(model="painter", prompt=PROMPT, n=6)
        assert answer.data is not None
        assert len(answer.data) == 6
        assert Waiting.last.most == 6
        timer.join()


def test_further_images_wait_for_places() -> None:
    serving = {"max_ongoing_requests": 2, "max_queued_requests": 1}
    with image_server(Waiting, serving) as client:
        timer = threading.Timer(0.3, lambda: Waiting.last.release.set())
        timer.start()
        answer = client.images.generate(model="painter", prompt=PROMPT, n=9)
        assert answer.data is not None
        assert len(answer.data) == 9
        assert Waiting.last.most == 2
        timer.join()


@pytest.mark.parametrize("stream", [False, True])
def test_one_failing_image_ends_the_others(stream: bool) -> None:
    body = {"model": "painter", "prompt": "fail", "n": 3, "stream": stream, "seed": 2}
    with image_server(Waiting, {"max_ongoing_requests": 8}) as client:
        answer = httpx.post(f"{client.base_url}images/generations", json=body, timeout=10)
        if stream:
            assert answer.status_code in (200, 400)
        else:
            assert (answer.status_code, answer.json()["error"]["message"]) == (
                400,
                "this one fails",
            )
        assert "this one fails" in answer.text
        wait_until(lambda: Waiting.last.ongoing == 0)
        assert Waiting.last.cancelled == len(Waiting.last.inputs) - 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_all_images(stream: bool) -> None:
    body = {"model": "painter", "prompt": PROMPT, "n": 4, "stream": stream}
    body |= {"partial_images": 1} if stream else {}
    with image_server(Waiting, {"max_ongoing_requests": 2}) as client:
        address = f"{client.base_url}images/generations"
        with (
            httpx.Client() as http,
            http.stream("POST", address, json=body)
            if stream
            else (pytest.raises(httpx.ReadTimeout)),
        ):
            if stream:
                wait_until(lambda: Waiting.last.ongoing == 2)
            else:
                http.post(address, json=body, timeout=0.5)
        wait_until(lambda: Waiting.last.ongoing == 0)
        # A call that waits for a place may get one that is freed before its own end reaches it.
        assert Waiting.last.cancelled == len(Waiting.last.inputs) <= 3
        Waiting.last.release.set()  # the server works on
        assert client.images.generate(model="painter", prompt=PROMPT).data


def test_hundreds_of_clients_that_leave_change_nothing() -> None:
    body = {"model": "painter", "prompt": PROMPT, "n": 3}
    with image_server(Waiting, {"max_ongoing_requests": 8}) as client:
        address = f"{client.base_url}images/generations"
        for _ in range(60):
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(address, json=body, timeout=0.02)
        wait_until(lambda: Waiting.last.ongoing == 0)
        Waiting.last.release.set()
        answer = client.images.generate(model="painter", prompt=PROMPT, n=8)
        assert answer.data is not None
        assert len(answer.data) == 8


def test_a_request_that_takes_too_long_ends() -> None:
    with image_server(Waiting, {"max_request_s": 0.4}) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            client.images.generate(model="painter", prompt=PROMPT, n=2)
        assert caught.value.status_code == 504
        wait_until(lambda: Waiting.last.ongoing == 0)
