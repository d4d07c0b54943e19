"""The routes `/v1/responses`, `/v1/messages` and `/v1/messages/count_tokens` over chat routes.

A request becomes one for the chat route of the same application, called in the same process, and
its answer is translated as it comes. So limits, sampling and errors are those of the chat route.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import quote

from truthgpt_serve.http.asgi import Receive, Scope, Send, WholeBody
from truthgpt_serve.http.connection import Connection
from truthgpt_serve.http.headers import BODY_HEADERS
from truthgpt_serve.http.json_body import encode_json, parse_object
from truthgpt_serve.server.over_chat.answer import TranslatedAnswer, Translation
from truthgpt_serve.server.over_chat.field_names import FieldNames
from truthgpt_serve.server.over_chat.messages.answer import CountAnswer, MessagesAnswer
from truthgpt_serve.server.over_chat.messages.field_names import TABLE as MESSAGES_TABLE
from truthgpt_serve.server.over_chat.messages.request import chat_of_message, tokenize_of_message
from truthgpt_serve.server.over_chat.messages.thinking import Think, no_effect
from truthgpt_serve.server.over_chat.responses.answer import ResponsesAnswer
from truthgpt_serve.server.over_chat.responses.field_names import TABLE as RESPONSES_TABLE
from truthgpt_serve.server.over_chat.responses.request import chat_of_response

RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
COUNT_TOKENS = f"{MESSAGES}/count_tokens"
TRANSLATED = (RESPONSES, MESSAGES, COUNT_TOKENS)
CHAT, TOKENIZE = "/v1/chat/completions", "/tokenize"

Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Check = Callable[[str, bytes, Mapping[str, Any]], None]
"""Checks a body against limits: path, bytes, fields. Raises RequestError."""


class OverChat:
    """Handles the routes.

    Args:
        app: The application with the chat route, and `/tokenize` for counting.
        read: Returns a request's body.
        check: See `Check`.
        name: The model name, for messages.
        think: Returns the fields of a chat request by which this model is told of thoughts; by
            default none, for a server whose templates are not known.
    """

    def __init__(
        self,
        app: Application,
        read: Callable[[Connection], Awaitable[bytes]],
        check: Check,
        name: str,
        think: Think = no_effect,
    ) -> None:
        self._app = app
        self._name = name
        self._read = read
        self._check = check
        self._think = think

    async def answer(self, connection: Connection) -> None:
        """Answers a request for one of the routes.

        Raises:
            TruthGPTError: The request cannot be translated; nothing was sent.
        """
        await self.translate(connection, await self._read(connection))

    async def translate(self, connection: Connection, raw: bytes) -> None:
        """Does the same with a body that was read already."""
        body = parse_object(raw)
        self._check(connection.path, raw, body)
        path, table = CHAT, MESSAGES_TABLE
        translation: Translation
        if connection.path == RESPONSES:
            payload, translation = chat_of_response(body), ResponsesAnswer(body)
            table = RESPONSES_TABLE
        elif connection.path == MESSAGES:
            payload, translation = chat_of_message(body, self._think), MessagesAnswer()
        else:
            path, translation = TOKENIZE, CountAnswer()
            payload = tokenize_of_message(body, self._think)
        names = FieldNames(table, payload)
        sent = encode_json(payload)
        scope = _inner_scope(connection, path, len(sent))
        answer = TranslatedAnswer(connection, translation, names, path=path, name=self._name)
        await self._app(scope, WholeBody(sent, connection.receive), answer.send)


def _inner_scope(connection: Connection, path: str, length: int) -> Scope:
    """Returns the scope of the request for another route of the same application."""
    outer = connection.scope
    whole: str = outer["path"]
    mount = whole[: len(whole) - len(connection.path)] if whole.endswith(connection.path) else ""
    headers = [
        line
        for line in outer["headers"]
        if line[0] not in BODY_HEADERS and not line[0].startswith(b"anthropic-")
    ]
    headers += [(b"content-type", b"application/json"), (b"content-length", b"%d" % length)]
    inner = mount + path
    return {
        **outer,
        "path": inner,
        "raw_path": quote(inner).encode(),
        "query_string": b"" if connection.path != RESPONSES else outer.get("query_string", b""),
        "headers": headers,
    }
