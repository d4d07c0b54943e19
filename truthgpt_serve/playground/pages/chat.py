"""The page that chats, with streaming."""

from __future__ import annotations

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
from truthgpt_serve.playground.pages.chat_request import MAX_ANSWER, Answer, Message, build_body

KIND = "chat"
PATH = "/v1/chat/completions"


def add_chat(tools: Tools) -> Any:
    """Adds the page; returns its field that chooses the model."""
    model = model_field()
    history = gr.State([], time_to_live=3600)
    log = gr.Chatbot(
        label="Conversation",
        height="min(40vh, 28rem)",
        allow_tags=False,
        feedback_options=None,
        buttons=["copy"],
        placeholder="Write a message below.",
    )
    message = gr.Textbox(
        label="Message",
        placeholder="Tell me a story about a fox",
        lines=1,
        max_lines=8,
        max_length=fields.MAX_TEXT,
        elem_id="tg-message",
    )
    with gr.Row(elem_classes="tg-buttons"):
        send = gr.Button("Send", variant="primary", elem_id="tg-send")
        stop = gr.Button("Stop", variant="stop", interactive=False, elem_id="tg-stop")
        clear = gr.Button("New conversation")
    report = gr.HTML()
    with gr.Accordion("Parameters", open=False):
        system = gr.Textbox(label="System prompt", lines=2, max_lines=8, max_length=fields.MAX_TEXT)
        with gr.Row():
            temperature = number_field("Temperature")
            top_p = number_field("Top p")
            max_tokens = number_field("Max tokens")
            seed = number_field("Seed")
        gr.HTML("<p>An empty field leaves it to the model.</p>")
    code = code_field()

    run = _make_run(tools)
    outputs = [log, history, message, report, code, send, stop]
    inputs = [message, history, tools.key, model, system, temperature, max_tokens, top_p, seed]
    gr.on([send.click, message.submit], run, inputs, outputs, **tools.limits(KIND))

    end = tools.make_stop(KIND)

    def forget(request: gr.Request) -> tuple[Any, ...]:
        end(request)
        return [], [], "", fragments.NO_CODE

    stop.click(end, None, None, **QUICK)
    gr.on([clear.click, log.clear], forget, None, [log, history, report, code], **QUICK)
    return model


def _make_run(tools: Tools) -> Callable[..., AsyncGenerator[tuple[Any, ...], None]]:
    async def run(
        message: Any,
        history: list[Message],
        key: str,
        model: Any,
        system: Any,
        temperature: Any,
        max_tokens: Any,
        top_p: Any,
        seed: Any,
        request: gr.Request,
    ) -> AsyncGenerator[tuple[Any, ...], None]:
        options = [system, temperature, max_tokens, top_p, seed]
        async with aclosing(
            _converse(tools, message, history, fields.key(key), model, options, request)
        ) as it:
            async for update in it:
                yield update

    return run


async def _converse(
    tools: Tools,
    message: Any,
    history: list[Message],
    key: str,
    model: Any,
    options: list[Any],
    request: gr.Request,
) -> AsyncGenerator[tuple[Any, ...], None]:
    on, off, same = gr.update(interactive=True), gr.update(interactive=False), gr.skip()
    try:
        said = fields.text(message, "The message", required=True)
        asked = [*history, {"role": "user", "content": said}]
        body = build_body(model, asked, options)
    except ServiceFault as error:
        yield same, same, same, fragments.fault(str(error)), same, on, off
        return
    code = tools.code(request, PATH, body, key)
    answer = Answer()
    yield asked, asked, "", fragments.status("Waiting for the first token"), code, off, on

    async def work(changed: Callable[[], None]) -> None:
        async with aclosing(tools.client.stream(PATH, key, body)) as events:
            async for event in events:
                answer.add(event)
                changed()
                if answer.length > MAX_ANSWER:
                    raise ServiceFault(f"The answer has more than {MAX_ANSWER} letters")

    report = ""
    try:
        async with aclosing(tools.running.follow(session_of(request), KIND, work)) as updates:
            async for _ in updates:
                if answer.length:
                    yield [*asked, _reply(answer)], same, same, "", same, same, same
        report = fragments.status(answer.describe())
    except ServiceFault as error:
        report = fragments.fault(str(error))
    if answer.length:
        kept = [*asked, _reply(answer)]
        yield kept, kept, same, report, same, on, off
    else:  # the conversation is as before, and the message can be sent again
        yield history, history, said, report, same, on, off


def _reply(answer: Answer) -> Message:
    return {"role": "assistant", "content": answer.text}
