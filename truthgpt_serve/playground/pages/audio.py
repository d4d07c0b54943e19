"""The page that turns speech into text."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from truthgpt_serve.playground import fields, fragments
from truthgpt_serve.playground.client import ServiceFault
from truthgpt_serve.playground.page import QUICK, Tools, code_field, model_field

KIND = "audio"
PATH = "/v1/audio/transcriptions"


def add_audio(tools: Tools) -> Any:
    """Adds the page; returns its field that chooses the model."""
    model = model_field()
    gr.HTML("<p>A model for speech, such as Whisper, has the task <code>custom</code>.</p>")
    recording = gr.Audio(
        label="Recording",
        sources=["upload", "microphone"],
        type="filepath",
        buttons=[],
        elem_id="tg-recording",
    )
    with gr.Row():
        language = gr.Textbox(label="Language", placeholder="en", max_lines=1, max_length=32)
        hint = gr.Textbox(label="Prompt", max_lines=3, max_length=2000)
    with gr.Row(elem_classes="tg-buttons"):
        send = gr.Button("Transcribe", variant="primary", elem_id="tg-transcribe")
        stop = gr.Button("Stop", variant="stop", interactive=False)
    report = gr.HTML()
    text = gr.HTML(elem_classes="tg-text")
    code = code_field()

    async def run(
        recording: Any, key: str, model: Any, language: Any, hint: Any, request: gr.Request
    ) -> AsyncGenerator[tuple[Any, ...], None]:
        values = (recording, model, language, hint)
        async with aclosing(_transcribe(tools, fields.key(key), values, request)) as updates:
            async for update in updates:
                yield update

    outputs = [report, text, code, send, stop]
    send.click(run, [recording, tools.key, model, language, hint], outputs, **tools.limits(KIND))

    stop.click(tools.make_stop(KIND), None, None, **QUICK)
    return model


async def _transcribe(
    tools: Tools, key: str, values: tuple[Any, ...], request: gr.Request
) -> AsyncGenerator[tuple[Any, ...], None]:
    recording, model, language, hint = values
    on, off, same = gr.update(interactive=True), gr.update(interactive=False), gr.skip()
    try:
        if not isinstance(recording, str):
            raise ServiceFault("There is no recording: make one, or choose a file")
        body = fields.without_empty(
            {
                "model": fields.model(model),
                "language": fields.text(language, "Language"),
                "prompt": fields.text(hint, "The prompt"),
            }
        )
    except ServiceFault as error:
        yield fragments.fault(str(error)), same, same, on, off
        return
    code = tools.code(request, PATH, body, key, file=Path(recording).name)
    yield fragments.status("Transcribing"), "", code, off, on
    started_s = time.monotonic()
    text = None
    try:
        call = partial(transcribe, tools, key, body, Path(recording))
        text = await tools.run(request, KIND, call)
        seconds = time.monotonic() - started_s
        line = fragments.status("Stopped." if text is None else f"Transcribed in {seconds:.1f} s.")
    except ServiceFault as error:
        line = fragments.fault(str(error))
    yield line, "" if text is None else f"<p>{escape(text)}</p>", same, on, off


async def transcribe(tools: Tools, key: str, body: dict[str, Any], file: Path) -> str:
    """Returns the text of a recording.

    Raises:
        ServiceFault: The file is too large, or the service refused.
    """
    most = tools.config.max_upload_bytes
    if file.stat().st_size > most:
        raise ServiceFault(f"The recording has more than {most} bytes (`max_upload_bytes`)")
    with file.open("rb") as data:
        value = await tools.client.post(PATH, key, data=body, files={"file": (file.name, data)})
    text = value.get("text") if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise ServiceFault("The service answered without a text")
    return text.strip() or "(no words)"
