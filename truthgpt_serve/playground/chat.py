"""The page that chats, with streaming."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
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

KIND = "chat"
PATH = "/v1/chat/completions"
MAX_ANSWER = 1_000_000
"""Letters of one answer that are shown; more end the request."""
MAX_MESSAGES = 200
"""Messages of one conversation that are kept."""

Message = dict[str, Any]


@dataclass(slots=True)
class Answer:
    """An answer as far as it has come."""

    started_s: float = field(default_factory=time.monotonic)
    first_s: float | None = None
    num_pieces: int = 0
    num_tokens: int | None = None
    length: int = 0
    parts: list[str] = field(default_factory=list)
    reason: str = ""

    def add(self, event: Message) -> None:
        """Takes over an event of the stream."""
        usage = event.get("usage")
        if isinstance(usage, dict) and isinstance(usage.get("completion_tokens"), int):
            self.num_tokens = usage["completion_tokens"]
        choices = event.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            return
        self.reason = str(choice.get("finish_reason") or self.reason)
        delta = choice.get("delta")
        text = delta.get("content") if isinstance(delta, dict) else None
        if isinstance(text, str) and text:
            if self.first_s is None:
                self.first_s = time.monotonic() - self.started_s
            self.parts.append(text)
            self.num_pieces += 1
            self.length += len(text)

    @property
    def text(self) -> str:
        """All of the text."""
        self.parts = ["".join(self.parts)]
        return self.parts[0]

    def describe(self) -> str:
        """Returns how many tokens came, and how fast."""
        seconds = time.monotonic() - self.started_s
        if self.first_s is None:
            return f"No text came, after {seconds:.1f} s."
        number, word = (
            (self.num_pieces, "pieces") if self.num_tokens is None else (self.num_tokens, "tokens")
        )
        rate = number / max(seconds, 1e-3)
        cut = " It stopped at the most tokens." if self.reason == "length" else ""
        return (
            f"{number} {word} in {seconds:.1f} s ({rate:.0f}/s), "
            f"the first after {self.first_s * 1000:.0f} ms.{cut}"
        )


def build_body(model: Any, history: list[Message], options: list[Any]) -> dict[str, Any]:
    """Returns the request's body.

    Args:
        model: The model's name.
        history: The conversation, with the user's new message at the end.
        options: System prompt, temperature, most tokens, top p and seed, each possibly empty.

    Raises:
        ServiceFault: A field has no usable value.
    """
    system, temperature, max_tokens, top_p, seed = options
    prompt = fields.text(system, "The system prompt")
    messages = [{"role": "system", "content": prompt}] if prompt else []
    return fields.without_empty(
        {
            "model": fields.model(model),
            "messages": [*messages, *history],
            "temperature": fields.number(temperature, "Temperature"),
            "top_p": fields.number(top_p, "Top p"),
            "max_tokens": fields.whole(max_tokens, "Max tokens"),
            "seed": fields.whole(seed, "Seed"),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    )


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
        system = gr.Textbox(label="System prompt", lines=2, max_lines=8)
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
        asked = [*history[-MAX_MESSAGES:], {"role": "user", "content": said}]
        body = build_body(model, asked, options)
    except ServiceFault as error:
        yield same, same, same, fragments.fault(str(error)), same, on, off
        return
    code = fragments.code_of(tools.sent(request, PATH, body, key))
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
