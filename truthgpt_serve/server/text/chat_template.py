"""Renders chats by a class's chat template, and sees that nothing said is lost in it.

Templates differ in what they know: many leave tool calls, or the role `tool` or `developer`, out
without a word, and some want the arguments of a call as an object, others as a text. So a chat with
such messages is rendered once more with marks in their place, and each mark must come out; where
one does not, the messages are tried in other shapes.
"""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from truthgpt_serve.errors import RequestError, UnsupportedError
from truthgpt_serve.server.text.messages import ChatMessage, dump_arguments, parse_arguments
from truthgpt_serve.server.text.tools.chat_shapes import PLANS, SHAPES

MARK = f"Qx{os.urandom(4).hex()}"
"""Begins every mark; new in each process, so that no client can write one."""
_A_MARK = re.compile(rf"{MARK}z\d+Q")
_CALLS = "tool_calls"
FIRST = 32
"""Messages of a long chat with which a form is tried first: there are many forms."""


class ChatTemplate:
    """One class's chat template.

    Args:
        apply: The tokenizer's `apply_chat_template`, or None for `role: content` lines.
        begins_answer: Whether the template begins an answer behind the messages.
    """

    def __init__(self, apply: Callable[..., Any] | None, *, begins_answer: bool = True) -> None:
        self._apply = apply
        self._begins_answer = begins_answer

    def render_open(self, messages: list[ChatMessage]) -> str:
        """Returns the prompt of a chat up to the end of its last message, which the answer goes on.

        Args:
            messages: The messages; the last one is the assistant's, with a text.

        Raises:
            UnsupportedError: As for `render`.
            RequestError: The template refuses the messages.
        """
        *others, last = messages
        ending = ChatTemplate(self._apply, begins_answer=False)
        text = ending.render([*others, {**last, "content": MARK}])
        before, found, _ = text.rpartition(MARK)
        if not found:  # a template that leaves the message out, where an answer begins all the same
            before = self.render(others or messages)
        return f"{before}{last['content']}"

    def render(self, messages: list[ChatMessage]) -> str:
        """Returns the prompt of a chat.

        Args:
            messages: The messages, as `read_messages` returns them.

        Raises:
            UnsupportedError: The template leaves out what a message says.
            RequestError: The template refuses the messages.
        """
        if self._apply is None:
            return _lines(messages)
        if not any(_CALLS in message or message["role"] in _RARE for message in messages):
            return self._call(messages)
        return self._render_rare(messages)

    def _render_rare(self, messages: list[ChatMessage]) -> str:
        """Renders a chat with messages that not every template knows."""
        developer = self._developer(messages)
        first: RequestError | None = None
        for shape in SHAPES:
            shaped = shape(messages)
            if first is not None and shaped == messages:
                continue
            for form in _FORMS:
                changed = [_with_role(form(message), developer) for message in shaped]
                try:
                    if len(changed) > FIRST:
                        self._check_whole(changed[:FIRST], is_part=True)
                    self._check_whole(changed)
                    return self._call(changed)
                except RequestError as error:
                    first = first or error
                    if not isinstance(error, UnsupportedError):
                        break
        assert first is not None  # the first shape is tried
        raise first

    def _check_whole(self, messages: list[ChatMessage], *, is_part: bool = False) -> None:
        """Raises UnsupportedError where the template leaves out what a message says."""
        if missing := self._find_missing(messages, is_part=is_part):
            raise UnsupportedError(
                f"the chat template of this model leaves out `{missing}`, or cannot read it: "
                "leave it out of the messages, or use a model whose template has it",
                param=missing,
            )

    def _developer(self, messages: list[ChatMessage]) -> str:
        """Returns the role by which the template knows what OpenAI calls the developer."""
        if all(message["role"] != "developer" for message in messages):
            return "developer"
        probe = [{"role": "developer", "content": MARK}, {"role": "user", "content": "x"}]
        try:
            return "developer" if MARK in self._call(probe) else "system"
        except RequestError:
            return "system"

    def _find_missing(self, messages: list[ChatMessage], *, is_part: bool) -> str:
        """Returns the place of the first thing that the template leaves out, or nothing.

        Args:
            messages: A chat.
            is_part: Whether they are the beginning of one, which the template may refuse.
        """
        marked, marks = _mark(messages)
        if not marks:
            return ""
        try:
            text = self._call(marked)
        except RequestError as error:
            if is_part or type(error.__cause__).__name__ == _RAISED:
                return ""  # a template that looks so closely says by itself what it does not take
            return next(iter(marks.values()))  # it wants another form
        found = set(_A_MARK.findall(text))  # in one pass: a chat may have thousands of calls
        for mark, place in marks.items():
            if mark not in found:
                return place
        # A form that the template prints as Python would is the wrong one.
        return next(iter(marks.values())) if _REPR in text else ""

    def _call(self, messages: list[ChatMessage]) -> str:
        if self._apply is None:
            return _lines(messages)
        try:
            begins = self._begins_answer
            return str(self._apply(messages, tokenize=False, add_generation_prompt=begins))
        except Exception as error:
            if not _is_of_template(error):
                raise
            raise RequestError(
                f"the chat template refuses the messages: {error}", param="messages"
            ) from error


def _is_of_template(error: Exception) -> bool:
    """Returns whether Jinja raised an error, or the code of a template did."""
    if any(kind.__name__ == _RAISED for kind in type(error).__mro__):
        return True
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_code.co_filename == _TEMPLATE for frame, _ in frames)


def _without_content(message: ChatMessage) -> ChatMessage:
    """Returns a message of nothing but tool calls as OpenAI writes it, which some ask for."""
    empty = _CALLS in message and not message["content"]
    return {**message, "content": None} if empty else message


_FORMS: tuple[Callable[[ChatMessage], ChatMessage], ...] = (
    parse_arguments,
    dump_arguments,
    lambda message: _without_content(parse_arguments(message)),
    lambda message: _without_content(dump_arguments(message)),
)
"""The forms of a message with tool calls that templates ask for; the usual one first."""
_RAISED = "TemplateError"
"""What `raise_exception` raises in a template; Jinja's other errors are subclasses of it."""
_TEMPLATE = "<template>"
"""The file name of a template's code."""
_RARE = frozenset(("tool", "developer"))
_REPR = "{'" + MARK
"""How Python, and no JSON, writes the beginning of marked arguments."""


def _lines(messages: list[ChatMessage]) -> str:
    for index, message in enumerate(messages):
        if _CALLS in message:
            place = f"messages[{index}].{_CALLS}"
            raise UnsupportedError(
                f"`{place}`: this model has no chat template, and a chat in plain lines has no "
                "place for tool calls; leave them out",
                param=place,
            )
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


def _with_role(message: ChatMessage, developer: str) -> ChatMessage:
    return {**message, "role": developer} if message["role"] == "developer" else message


def _mark(messages: list[ChatMessage]) -> tuple[list[ChatMessage], dict[str, str]]:
    """Returns the messages with marks in them, and the place of each mark.

    Identifiers keep their values: templates may check their form.
    """
    marks: dict[str, str] = {}

    def mark(place: str) -> str:
        text = f"{MARK}z{len(marks)}Q"
        marks[text] = place
        return text

    marked = []
    for index, message in enumerate(messages):
        place = f"messages[{index}]"
        if message["role"] == "tool" and message["content"]:
            message = {**message, "content": mark(f"{place}.content")}
        if _CALLS in message:
            calls = [
                _marked_call(call, mark, f"{place}.{_CALLS}[{number}].function")
                for number, call in enumerate(message[_CALLS])
            ]
            message = {**message, _CALLS: calls}
            if message["content"]:
                message["content"] = mark(f"{place}.content")
            elif message.get(PLANS[0]):
                message |= dict.fromkeys(PLANS, mark(f"{place}.content"))
        marked.append(message)
    return marked, marks


def _marked_call(call: dict[str, Any], mark: Callable[[str], str], place: str) -> dict[str, Any]:
    name = mark(f"{place}.name")
    arguments: Any = call["function"]["arguments"]
    if isinstance(arguments, dict):
        arguments = {mark(f"{place}.arguments"): mark(f"{place}.arguments")}
    elif arguments.startswith("{"):
        arguments = f'{{"{mark(f"{place}.arguments")}": 1}}'
    elif arguments:
        arguments = mark(f"{place}.arguments")
    return {**call, "function": {"name": name, "arguments": arguments}}


class TextTemplate:
    """A chat template that takes messages whose contents are texts.

    Templates of models that see, such as SmolVLM's, read lists of parts alone: of a text they print
    nothing, or fail.

    Args:
        apply: The tokenizer's `apply_chat_template`.
    """

    def __init__(self, apply: Callable[..., Any]) -> None:
        self._apply = apply

    def __call__(self, messages: Sequence[ChatMessage], **options: Any) -> Any:
        """Returns what `apply_chat_template` does."""
        shaped = [_in_parts(one) for one in messages] if self._reads_parts else messages
        return self._apply(shaped, **options)

    @cached_property
    def _reads_parts(self) -> bool:
        """Whether the template prints a content in parts, and none that is a text."""
        said = {"role": "user", "content": MARK}
        return not self._prints(said) and self._prints(_in_parts(said))

    def _prints(self, message: ChatMessage) -> bool:
        try:
            return MARK in self._apply([message], tokenize=False, add_generation_prompt=True)
        except Exception:  # templates raise what they like about what they do not take
            return False


def _in_parts(message: ChatMessage) -> ChatMessage:
    content = message.get("content")
    if not isinstance(content, str):
        return message
    return {**message, "content": [{"type": "text", "text": content}]}
