"""Images on the page, as the events of their stream arrive."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from truthgpt_serve.playground.client import ServiceFault
from truthgpt_serve.playground.pages.drawing import Drawing, Drawings

HOSTILE = "<script>alert(1)</script>\"'"


PIXEL = base64.b64encode(b"image").decode()


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
