"""What the pages make of fields, events and answers."""

from __future__ import annotations

import base64
import sys
from typing import Any

import pytest

from truthgpt_serve.errors import ConfigError
from truthgpt_serve.playground import fields
from truthgpt_serve.playground.application import require_gradio
from truthgpt_serve.playground.client import ServiceFault
from truthgpt_serve.playground.code import Sent
from truthgpt_serve.playground.fragments import code_of, fault
from truthgpt_serve.playground.pages.chat_request import MAX_CONVERSATION, MAX_MESSAGES, build_body
from truthgpt_serve.playground.pages.drawing import Drawing, Drawings
from truthgpt_serve.playground.pages.similarity import cosines, split_lines, to_table

HOSTILE = "<script>alert(1)</script>\"'"
PIXEL = base64.b64encode(b"image").decode()


def test_cosines_of_known_vectors() -> None:
    found = cosines([[1, 0, 0], [2, 0, 0], [0, 3, 0], [1, 1, 0], [0, 0, 0]])
    assert found[0] == pytest.approx([1, 1, 0, 0.5**0.5, 0])
    assert found[3] == pytest.approx([0.5**0.5, 0.5**0.5, 0.5**0.5, 1, 0])
    assert cosines([[-1.0], [1.0]])[0] == pytest.approx([1, -1])
    with pytest.raises(ValueError, match="vectors of 1 and 2"):
        cosines([[1], [1, 2]])


def test_the_table_shows_each_pair_and_escapes_the_lines() -> None:
    lines = split_lines(f"one\n\n  {HOSTILE} \n")
    assert lines == ["one", HOSTILE]
    table = to_table(lines, cosines([[1, 0], [1, 1]]))
    assert table.count("<td") == 4
    assert table.count(">0.71<") == 2
    assert "<script" not in table


@pytest.mark.parametrize(
    ("value", "number"),
    [("", None), (None, None), (" 3 ", 3), ("0.5", 0.5), ("-1", -1), (".5", 0.5)],
)
def test_numbers(value: Any, number: float | None) -> None:
    assert fields.number(value, "Seed") == number
    assert type(fields.number(value, "Seed")) is type(number)


@pytest.mark.parametrize("value", ["x", "1e5", "nan", "inf", "1_0", "²", "9" * 40, "1.", "0x1"])
def test_what_is_no_number_is_refused(value: str) -> None:
    with pytest.raises(ServiceFault, match=r"^Seed must be a number such as 0\.7"):
        fields.number(value, "Seed")
    with pytest.raises(ServiceFault, match=r"^Seed must be a whole number, not 0\.5"):
        fields.whole("0.5", "Seed")


def test_images_grow_by_their_events() -> None:
    drawings = Drawings([Drawing(at, f"p {HOSTILE}", 7 + at) for at in range(2)])
    drawings.add({"type": "image_generation.progress", "index": 1, "queue_position": 4})
    assert "place 5" in drawings.images[1].to_html()
    drawings.add({"type": "image_generation.progress", "index": 1, "step": 3, "num_steps": 9})
    assert 'max="9" value="3"' in drawings.images[1].to_html()
    event = {"type": "image_generation.partial_image", "b64_json": PIXEL, "index": 1}
    drawings.add(event)
    assert 'alt="Unfinished: p' in drawings.images[1].to_html()
    drawings.add({**event, "type": "image_generation.completed", "seed": 99})
    html = drawings.images[1].to_html()
    assert "seed 99" in html
    assert 'download="image-2.png"' in html
    assert "<script" not in html
    assert not drawings.images[0].done
    assert [slot is None for slot in drawings.slots()] == [False, False, True, True]
    drawings.remove_empty()
    assert drawings.slots() == [html, None, None, None]


@pytest.mark.parametrize(
    "event",
    [
        {"index": 5},
        {"index": "0"},
        {"index": -1},
        {"type": "x.completed", "b64_json": 'x" onerror="alert(1)'},
        {"type": "x.completed", "b64_json": None},
        {"type": "x.completed", "b64_json": PIXEL, "output_format": "svg+xml"},
    ],
)
def test_what_is_no_image_is_not_shown(event: dict[str, Any]) -> None:
    with pytest.raises(ServiceFault, match="The service sent"):
        Drawings([Drawing(0, "p")]).add(event)


def test_errors_and_code_are_escaped() -> None:
    assert "<script" not in fault(HOSTILE)
    sent = Sent("http://127.0.0.1:1/v1/embeddings", {"model": HOSTILE, "input": ["a"]})
    assert "<script" not in code_of(sent)
    assert code_of(sent).count("<pre ") == 3


def test_without_gradio_the_start_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ConfigError, match=r"needs Gradio.*truthgpt-serve\[ui\]"):
        require_gradio()


def test_a_conversation_is_bounded() -> None:
    options = [""] * 5
    said = {"role": "user", "content": "x" * MAX_CONVERSATION}
    assert build_body("m", [said], options)["messages"] == [said]
    with pytest.raises(ServiceFault, match="start a new one"):
        build_body("m", [said, said], options)
    short = {"role": "user", "content": "x"}
    with pytest.raises(ServiceFault, match="messages: start a new one"):
        build_body("m", [short] * (MAX_MESSAGES + 1), options)


def test_code_that_is_too_long_is_not_made() -> None:
    sent = Sent("http://127.0.0.1:1/v1/embeddings", {"model": "m", "input": ["x" * 110_000]})
    assert "too many to be shown" in code_of(sent)
    assert len(code_of(sent)) < 200


def test_what_is_empty_is_not_sent() -> None:
    said = {"role": "user", "content": "hi"}
    body = build_body("m", [said], ["be kind", "0.5", "", " ", "7"])
    assert body["messages"] == [{"role": "system", "content": "be kind"}, said]
    assert {name for name in body if name not in ("model", "messages")} == {
        "temperature",
        "seed",
        "stream",
        "stream_options",
    }
