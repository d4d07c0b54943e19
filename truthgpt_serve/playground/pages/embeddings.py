"""The page that compares lines of text by their embeddings."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

import gradio as gr

from truthgpt_serve.playground import fields, fragments
from truthgpt_serve.playground.client import ServiceFault
from truthgpt_serve.playground.page import Tools, code_field, model_field
from truthgpt_serve.playground.pages.similarity import MAX_LINES, cosines, split_lines, to_table

KIND = "embeddings"
PATH = "/v1/embeddings"


def build_body(model: Any, text: Any) -> dict[str, Any]:
    """Returns the request's body.

    Raises:
        ServiceFault: A field has no usable value.
    """
    lines = split_lines(fields.text(text, "The text", required=True) or "")
    if not 2 <= len(lines) <= MAX_LINES:
        raise ServiceFault(f"Write from 2 to {MAX_LINES} lines; there are {len(lines)}")
    return {"model": fields.model(model), "input": lines}


def read_vectors(answer: Any, number: int) -> list[list[float]]:
    """Returns the vectors of an answer, in the order of the lines.

    Raises:
        ServiceFault: It has not one vector of the same length for each line.
    """
    data = answer.get("data") if isinstance(answer, dict) else None
    found = {
        item["index"]: item["embedding"]
        for item in (data if isinstance(data, list) else [])
        if isinstance(item, dict)
        and isinstance(item.get("embedding"), list)
        and isinstance(item.get("index"), int)
    }
    vectors = [found.get(at) for at in range(number)]
    whole = [vector for vector in vectors if vector]
    numbers = all(isinstance(value, int | float) for vector in whole for value in vector)
    if len(whole) != number or len({len(vector) for vector in whole}) != 1 or not numbers:
        raise ServiceFault("The service did not answer with one embedding for each line")
    return whole


def add_embeddings(tools: Tools) -> Any:
    """Adds the page; returns its field that chooses the model."""
    model = model_field()
    text = gr.Textbox(
        label="Lines to compare",
        placeholder="The cat sleeps.\nA kitten is dozing.\nStocks fell on Monday.",
        lines=5,
        max_lines=12,
        max_length=fields.MAX_TEXT,
    )
    compare = gr.Button("Compare", variant="primary")
    report = gr.HTML()
    table = gr.HTML()
    code = code_field()

    async def run(
        text: Any, key: str, model: Any, request: gr.Request
    ) -> AsyncGenerator[tuple[Any, ...], None]:
        key, same = fields.key(key), gr.skip()
        try:
            body = build_body(model, text)
        except ServiceFault as error:
            yield fragments.fault(str(error)), same, same
            return
        yield fragments.status("Comparing"), "", tools.code(request, PATH, body, key)
        started_s = time.monotonic()
        lines = body["input"]
        try:
            post = partial(tools.client.post, PATH, key, json=body)
            vectors = read_vectors(await tools.run(request, KIND, post), len(lines))
        except ServiceFault as error:
            yield fragments.fault(str(error)), same, same
            return
        seconds = time.monotonic() - started_s
        what = f"{len(lines)} vectors of {len(vectors[0])} numbers in {seconds:.2f} s."
        matrix = await asyncio.to_thread(cosines, vectors)
        yield fragments.status(what), to_table(lines, matrix), same

    compare.click(run, [text, tools.key, model], [report, table, code], **tools.limits(KIND))
    return model
