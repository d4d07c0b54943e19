"""The page that makes images, with progress and previews, several seeds side by side."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import gradio as gr

from truthgpt_serve.playground import fields, fragments
from truthgpt_serve.playground.client import ServiceFault
from truthgpt_serve.playground.page import (
    QUICK,
    Tools,
    code_field,
    model_field,
    number_field,
    session_of,
)
from truthgpt_serve.playground.pages.drawing import MAX_IMAGES, Drawing, Drawings

KIND = "images"
PATH = "/v1/images/generations"
SIZES = ("64x64", "256x256", "512x512", "768x768", "1024x1024", "1024x1536", "1536x1024")
NUM_PREVIEWS = 3


def build_body(model: Any, prompt: Any, number: Any, options: tuple[Any, ...]) -> dict[str, Any]:
    """Returns the request's body.

    Args:
        model: The model's name.
        prompt: What the images shall show.
        number: How many.
        options: Seed, size, steps, guidance scale and negative prompt, each possibly empty.

    Raises:
        ServiceFault: A field has no usable value.
    """
    seed, size, steps, guidance, negative = options
    count = fields.whole(number, "Images") or 1
    if not 1 <= count <= MAX_IMAGES:
        raise ServiceFault(f"Images must be from 1 to {MAX_IMAGES}")
    return fields.without_empty(
        {
            "model": fields.model(model),
            "prompt": fields.text(prompt, "The prompt", required=True),
            "n": count,
            "size": fields.text(size, "Size"),
            "seed": fields.whole(seed, "Seed"),
            "steps": fields.whole(steps, "Steps"),
            "guidance_scale": fields.number(guidance, "Guidance scale"),
            "negative_prompt": fields.text(negative, "The negative prompt"),
            "stream": True,
            "partial_images": NUM_PREVIEWS,
            "progress": True,
        }
    )


def add_images(tools: Tools) -> Any:
    """Adds the page; returns its field that chooses the model."""
    model = model_field()
    prompt = gr.Textbox(
        label="Prompt",
        placeholder="a big red star in the top left",
        max_lines=4,
        max_length=fields.MAX_TEXT,
        elem_id="tg-prompt",
    )
    with gr.Row():
        number = number_field("Images", "1", elem_id="tg-number")
        seed = number_field("Seed of the first", elem_id="tg-seed")
    with gr.Row(elem_classes="tg-buttons"):
        draw = gr.Button("Make images", variant="primary", elem_id="tg-draw")
        stop = gr.Button("Stop", variant="stop", interactive=False)
    report = gr.HTML()
    with gr.Row(elem_classes="tg-figures"):
        slots = [gr.HTML(visible=False, min_width=120) for _ in range(MAX_IMAGES)]
    size, steps, guidance, negative = _add_parameters()
    code = code_field()

    async def run(
        prompt: Any,
        key: str,
        model: Any,
        number: Any,
        seed: Any,
        size: Any,
        steps: Any,
        guidance: Any,
        negative: Any,
        request: gr.Request,
    ) -> AsyncGenerator[tuple[Any, ...], None]:
        try:
            body = build_body(model, prompt, number, (seed, size, steps, guidance, negative))
        except ServiceFault as error:
            yield _update(fragments.fault(str(error)))
            return
        async with aclosing(_draw(tools, fields.key(key), body, request)) as updates:
            async for update in updates:
                yield update

    outputs = [report, code, draw, stop, *slots]
    inputs = [prompt, tools.key, model, number, seed, size, steps, guidance, negative]
    gr.on([draw.click, prompt.submit], run, inputs, outputs, **tools.limits(KIND))

    stop.click(tools.make_stop(KIND), None, None, **QUICK)
    return model


def _add_parameters() -> tuple[Any, ...]:
    """Adds the fields that may stay empty."""
    with gr.Accordion("Parameters", open=False):
        negative = gr.Textbox(label="Negative prompt", max_lines=4)
        with gr.Row():
            size = gr.Dropdown(
                SIZES, value=None, label="Size", allow_custom_value=True, interactive=True
            )
            steps = number_field("Steps")
            guidance = number_field("Guidance scale")
        gr.HTML("<p>An empty field leaves it to the model.</p>")
    return size, steps, guidance, negative


async def _draw(
    tools: Tools, key: str, body: dict[str, Any], request: gr.Request
) -> AsyncGenerator[tuple[Any, ...], None]:
    first = body.get("seed")
    drawings = Drawings(
        [
            Drawing(at, body["prompt"], None if first is None else first + at)
            for at in range(body["n"])
        ]
    )
    code = tools.code(request, PATH, body, key)
    started_s = time.monotonic()

    async def work(changed: Callable[[], None]) -> None:
        async with aclosing(tools.client.stream(PATH, key, body)) as events:
            async for event in events:
                drawings.add(event)
                changed()

    # Every update has all images: browsers skip some, and what did not change is not sent again.
    yield _update(fragments.status("Making images"), code, running=True, drawings=drawings)
    report = ""
    try:
        async with aclosing(tools.running.follow(session_of(request), KIND, work)) as updates:
            async for _ in updates:
                yield _update(drawings=drawings)
        done = sum(image.done for image in drawings.images)
        seconds = time.monotonic() - started_s
        report = fragments.status(f"{done} of {body['n']} images in {seconds:.1f} s.")
    except ServiceFault as error:
        report = fragments.fault(str(error))
    drawings.remove_empty()
    yield _update(report, running=False, drawings=drawings)


def _update(
    report: str | None = None,
    code: str | None = None,
    *,
    running: bool | None = None,
    drawings: Drawings | None = None,
) -> tuple[Any, ...]:
    """Returns the outputs of one step; what is None stays as it is."""
    same = gr.skip()
    return (
        same if report is None else report,
        same if code is None else code,
        same if running is None else gr.update(interactive=not running),
        same if running is None else gr.update(interactive=running),
        *([same] * MAX_IMAGES if drawings is None else map(_slot, drawings.slots())),
    )


def _slot(html: str | None) -> Any:
    return gr.update(value=html or "", visible=html is not None)
