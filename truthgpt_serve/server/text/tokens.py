"""`/tokenize` and `/detokenize` for any class with a tokenizer, in vLLM's form."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from truthgpt_serve.http.json_body import encode_json
from truthgpt_serve.request_schema import (
    FullText,
    RequestModel,
    Via,
    bad_field,
)
from truthgpt_serve.server.template_options import TemplateVariables
from truthgpt_serve.server.text.messages import (
    ChatMessage,
    Message,
    check_end,
    check_number,
    read_messages,
)
from truthgpt_serve.server.text.request import TokenIds
from truthgpt_serve.server.text.tokenizer import Tokenizer
from truthgpt_serve.server.text.tools.request import Tools, read_tools


class TokenizeRequest(RequestModel):
    """A body of `POST /tokenize`."""

    model: FullText
    prompt: str | None = None
    messages: (
        Annotated[
            list[ChatMessage],
            Via(Annotated[list[Message], Field(min_length=1, fail_fast=True)], read_messages),
            BeforeValidator(check_number),
        ]
        | None
    ) = None
    add_special_tokens: bool | None = None
    """Whether the tokens that the tokenizer adds in front of a text count; by default for prompts,
    not for chats, whose template writes them."""
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    return_token_strs: bool | None = None
    tools: Tools | None = None
    chat_template_kwargs: TemplateVariables = None


class DetokenizeRequest(RequestModel):
    """A body of `POST /detokenize`."""

    model: FullText
    tokens: TokenIds


def tokenize(request: TokenizeRequest, tokenizer: Tokenizer, max_model_len: int | None) -> bytes:
    """Returns the answer to a request for tokens; takes long for a long text.

    Raises:
        RequestError: It has neither `prompt` nor `messages`, or both.
        UnsupportedError: The class has no tokenizer.
    """
    if (request.prompt is None) == (request.messages is None):
        raise bad_field("prompt", "or `messages` is required, and not both")
    special = request.add_special_tokens
    if request.messages is not None:
        use = read_tools(request.tools, None, parallel=None)
        tools, goes_on = (
            use.tools if use is not None else None,
            bool(request.continue_final_message),
        )
        check_end(request.messages, request.add_generation_prompt, goes_on=goes_on)
        options = request.chat_template_kwargs
        text = tokenizer.render(request.messages, tools, goes_on=goes_on, options=options)
        special = not tokenizer.has_template if special is None else special
    else:
        text = request.prompt or ""
        special = True if special is None else special
    tokens = tokenizer.encode(text, special=special)
    answer: dict[str, Any] = {
        "count": len(tokens),
        "max_model_len": max_model_len,
        "tokens": tokens,
        "token_strs": list(map(tokenizer.token_text, tokens))
        if request.return_token_strs
        else None,
    }
    return encode_json(answer)


def detokenize(request: DetokenizeRequest, tokenizer: Tokenizer) -> bytes:
    """Returns the answer to a request for the text of tokens; errors as `Tokenizer.decode`."""
    return encode_json({"prompt": tokenizer.decode(request.tokens)})
