"""Malformed requests over the whole stack: exact status and message, in the form of its API."""

from __future__ import annotations

import contextlib
import http.client
import socket
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from tests.serve.whole_service.conftest import Service
from truthgpt_serve.cluster.haproxy.queues import BUFFER_BYTES

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
INFER = "/v1/infer"
FORM = {"content-type": "multipart/form-data; boundary=b"}
USER = [{"role": "user", "content": "Hi"}]
IMAGE = {
    "role": "user",
    "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x.png"}}],
}
LONG = "hello " * 3000
NAMES = (
    "backwards, echo, embedder, gpt-4o-mini, org/Tiny-1B:latest, shouting, slow, spelling, tiny, "
    "tiny-adapter"
)
REQUEST_ID = "bad-7"


class Bad(NamedTuple):
    """A request and the error that it must get."""

    body: Any
    status: int
    message: str
    type: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    method: str = "POST"
    path: str = CHAT
    headers: dict[str, str] | None = None


def refused(body: Any, message: str, **others: Any) -> Bad:
    """What vLLM's code does not accept."""
    if "maximum context length" in message:
        others["code"] = "context_length_exceeded"
    return Bad(body, 400, message, **others)


def invalid(body: Any, field: str, message: str, **others: Any) -> Bad:
    """What vLLM's schema does not have."""
    text = f"`{field}`: {message}"
    return Bad(body, 400, text, param=field, **others)


def chat(model: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": USER, **fields}


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def schema(value: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": value}}


def form(name: str, value: str) -> bytes:
    head = f'content-disposition: form-data; name="{name}"'
    return f"--b\r\n{head}\r\n\r\n{value}\r\n--b--\r\n".encode()


ROUTER: dict[str, Bad] = {
    "empty body": Bad(b"", 400, "the request body is not valid JSON: Input data was truncated"),
    "half a body": Bad(
        b'{"model": "tiny"', 400, "the request body is not valid JSON: Input data was truncated",
    ),
    "plain text": Bad(
        b"hello", 400,
        "the request body is not valid JSON: JSON is malformed: invalid character (byte 0)",
    ),
    "text behind the object": Bad(
        b'{"model": "tiny"} x', 400,
        "the request body is not valid JSON: JSON is malformed: trailing characters (byte 19)",
    ),
    "array": Bad(
        [1], 400, "the request body must be a JSON object (found `array`)",
    ),
    "string": Bad(
        b'"tiny"', 400, "the request body must be a JSON object (found `str`)",
    ),
    "null": Bad(
        b"null", 400, "the request body must be a JSON object (found `null`)",
    ),
    "no UTF-8": Bad(
        b'{"model": "\xff"}', 400,
        "the request body is not valid JSON: 'utf-8' codec can't decode byte 0xff in "
        "position 0: invalid start byte",
    ),
    "UTF-16": Bad(
        '{"model": "tiny"}'.encode("utf-16"), 400,
        "the request body is not valid JSON: JSON is malformed: invalid character (byte 0)",
    ),
    "compressed": Bad(
        b"\x1f\x8b\x08", 400,
        "the body is not valid gzip, its content-encoding: it is cut off",
        headers={"content-encoding": "gzip"},
    ),
    "no model": Bad(
        {"messages": USER}, 400,
        "the request has no `model`: add the top-level field `model`, one of the names at "
        "GET /v1/models",
        param="model",
    ),
    "model only further down": Bad(
        {"options": {"model": "tiny"}}, 400,
        "the request has no `model`: add the top-level field `model`, one of the names at "
        "GET /v1/models",
        param="model",
    ),
    "model is null": Bad(
        {"model": None}, 400, "`model` must be a string (found `null`)",
        param="model",
    ),
    "model is a number": Bad(
        {"model": 7}, 400, "`model` must be a string (found `int`)",
        param="model",
    ),
    "model is a list": Bad(
        {"model": ["tiny"]}, 400, "`model` must be a string (found `array`)",
        param="model",
    ),
    "model is empty": Bad(
        {"model": ""}, 400, "`model` is empty: name one of those at GET /v1/models",
        param="model",
    ),
    "model is long": Bad(
        {"model": "x" * 600}, 400, "`model` is longer than 512 characters",
        param="model",
    ),
    "unknown model": Bad(
        {"model": "nosuch"}, 404, f"The model 'nosuch' does not exist. Models that do: {NAMES}",
        code="model_not_found", param="model",
    ),
    "the router itself": Bad(
        {"model": "router"}, 404, f"The model 'router' does not exist. Models that do: {NAMES}",
        code="model_not_found", param="model",
    ),
    "model with a path": Bad(
        {"model": "../tiny"}, 404, f"The model '../tiny' does not exist. Models that do: {NAMES}",
        code="model_not_found", param="model",
    ),
    "unknown model by form": Bad(
        form("model", "nosuch"), 404,
        f"The model 'nosuch' does not exist. Models that do: {NAMES}",
        code="model_not_found", param="model", path=INFER, headers=FORM,
    ),
    "form without model": Bad(
        form("prompt", "x"), 400,
        "the request has no `model`: add the top-level field `model`, one of the names at "
        "GET /v1/models",
        param="model", path=INFER, headers=FORM,
    ),
    "form without boundary": Bad(
        b"--b", 400,
        "the multipart form has no boundary: send `Content-Type: multipart/form-data; "
        "boundary=...`",
        path=INFER, headers={"content-type": "multipart/form-data"},
    ),
    "form that is none": Bad(
        b"hello", 400,
        "the request body is not a valid multipart form: Expected boundary character 45, "
        "got 104 at index 2",
        path=INFER, headers=FORM,
    ),
    "GET of a route of models": Bad(
        b"", 405, "/v1/chat/completions takes POST, not GET",
        code="method_not_allowed", method="GET",
    ),
    "DELETE of a route of models": Bad(
        b"", 405, "/v1/chat/completions takes POST, not DELETE",
        code="method_not_allowed", method="DELETE",
    ),
    "OPTIONS": Bad(
        b"", 405, "/v1/chat/completions takes POST, not OPTIONS",
        code="method_not_allowed", method="OPTIONS",
    ),
    "POST to a page": Bad(
        {}, 405, "/v1/models takes GET, not POST",
        code="method_not_allowed", path="/v1/models",
    ),
    "PUT to a page": Bad(
        {}, 405, "/health takes GET, not PUT",
        code="method_not_allowed", method="PUT", path="/health",
    ),
    "DELETE of a model": Bad(
        b"", 405, "/v1/models/tiny takes GET, not DELETE",
        code="method_not_allowed", method="DELETE", path="/v1/models/tiny",
    ),
    "unknown page": Bad(
        b"", 404, "there is no /nosuch here; /docs lists the routes",
        code="not_found", method="GET", path="/nosuch",
    ),
    "unknown model's card": Bad(
        b"", 404, "The model 'nosuch' does not exist",
        code="model_not_found", param="model", method="GET", path="/v1/models/nosuch",
    ),
    "unknown model's own route": Bad(
        {"model": "nosuch"}, 404,
        f"The model 'nosuch' does not exist. Models that do: {NAMES}",
        code="model_not_found", param="model", path="/models/nosuch/v1/chat/completions",
    ),
    "adapter's own route": Bad(
        {"model": "tiny-adapter"}, 404,
        "'tiny-adapter' is an adapter: its address is /models/tiny",
        code="model_not_found", param="model", path="/models/tiny-adapter/v1/chat/completions",
    ),
    "no model's own route": Bad(
        b"", 404, f"The model '' does not exist. Models that do: {NAMES}",
        code="model_not_found", param="model", method="GET", path="/models/",
    ),
}  # fmt: skip

VLLM: dict[str, Bad] = {
    "temperature below 0": refused(
        chat("tiny", temperature=-1),
        "temperature must be non-negative, got -1.0.",
        param="temperature",
    ),
    "temperature is text": invalid(
        chat("tiny", temperature="hot"), "temperature",
        "Input should be a valid number, unable to parse string as a number",
    ),
    "top_p above 1": refused(
        chat("tiny", top_p=2), "top_p must be in (0, 1], got 2.0.",
        param="top_p",
    ),
    "top_k below -1": refused(
        chat("tiny", top_k=-5), "top_k must be 0 (disable), or at least 1, got -5.",
    ),
    "min_p above 1": refused(chat("tiny", min_p=2), "min_p must be in [0, 1], got 2.0."),
    "n is 0": refused(chat("tiny", n=0), "n must be at least 1, got 0."),
    "n is text": invalid(
        chat("tiny", n="a"), "n",
        "Input should be a valid integer, unable to parse string as an integer",
    ),
    "max_tokens is 0": refused(
        chat("tiny", max_tokens=0),
        "max_tokens must be at least 1, got 0.",
        param="max_tokens",
    ),
    "max_tokens is text": invalid(
        chat("tiny", max_tokens="many"), "max_tokens",
        "Input should be a valid integer, unable to parse string as an integer",
    ),
    "max_tokens above the context": refused(
        chat("tiny", max_tokens=100_000),
        "This model's maximum context length is 512 tokens. max_tokens=100000 cannot be "
        "greater than max_model_len=512. Please request fewer output tokens.",
        param="max_tokens",
    ),
    "seed is text": invalid(
        chat("tiny", seed="x"), "seed",
        "Input should be a valid integer, unable to parse string as an integer",
    ),
    "stop is a number": Bad(
        chat("tiny", stop=7), 400,
        "`stop`: Input should be a valid string; `stop`: Input should be a valid list",
        param="stop",
    ),
    "presence_penalty too large": refused(
        chat("tiny", presence_penalty=9), "presence_penalty must be in [-2, 2], got 9.0.",
    ),
    "repetition_penalty is 0": refused(
        chat("tiny", repetition_penalty=0),
        "repetition_penalty must be greater than zero, got 0.0.",
    ),
    "top_logprobs without logprobs": refused(
        chat("tiny", top_logprobs=2),
        "when using `top_logprobs`, `logprobs` must be set to true.",
        param="top_logprobs",
    ),
    "too many logprobs": refused(
        chat("tiny", logprobs=True, top_logprobs=100),
        "`top_logprobs` is 100, but this model takes at most 20 "
        "(`serving.limits.max_logprobs`)",
        param="top_logprobs",
    ),
    "logit_bias of no token": refused(
        chat("tiny", logit_bias={"x": 1}),
        "logit_bias contains key(s) that cannot be converted to integer token IDs: ['x']",
        param="logit_bias",
    ),
    "logit_bias of an unknown token": refused(
        chat("tiny", logit_bias={"99999": 1}),
        "token_id(s) [99999] in logit_bias contain out-of-vocab token ids. Vocabulary "
        "size: 1536",
        param="logit_bias",
    ),
    "min_tokens above max_tokens": refused(
        chat("tiny", min_tokens=9, max_tokens=2),
        "min_tokens must be less than or equal to max_tokens=2, got 9.",
    ),
    "tool_choice without tools": refused(
        chat("tiny", tool_choice="required"),
        "When using `tool_choice`, `tools` must be set.",
        param="tool_choice",
    ),
    "unknown tool chosen": refused(
        chat("tiny", tools=[tool("f")], tool_choice=tool("g")),
        "The tool specified in `tool_choice` does not match any of the specified `tools`",
        param="tool_choice",
    ),
    "schema of an unknown type": refused(
        chat("tiny", response_format=schema({"type": "nosuch"})),
        "`response_format.json_schema.schema` cannot constrain the answer: Unsupported type "
        '"nosuch"',
        param="response_format.json_schema.schema",
    ),
    "stream_options without stream": refused(
        chat("tiny", stream_options={"include_usage": True}),
        "Stream options can only be defined when `stream=True`.",
        param="stream_options",
    ),
    "stream is text": invalid(
        chat("tiny", stream="perhaps"), "stream",
        "Input should be a valid boolean, unable to interpret input",
    ),
    "stream with a bad field": refused(
        chat("tiny", stream=True, temperature=-1),
        "temperature must be non-negative, got -1.0.",
        param="temperature",
    ),
    "no messages": invalid(
        {"model": "tiny"}, "messages", "Field required",
    ),
    "messages are empty": refused(
        {"model": "tiny", "messages": []},
        "Cannot apply chat template to an empty conversation. Provide at least one message.",
    ),
    "messages are text": Bad(
        {"model": "tiny", "messages": "Hi"}, 400, "`messages` must be a list, not 'Hi'",
        param="messages",
    ),
    "image for a language model": refused(
        {"model": "tiny", "messages": [IMAGE]}, "tiny is not a multimodal model",
    ),
    "chat too long": refused(
        {"model": "tiny", "messages": [{"role": "user", "content": LONG}]},
        "This model's maximum context length is 512 tokens. However, your prompt contains "
        "18050 characters (more than 8192 characters, which is the upper bound for 512 "
        "input tokens). Please reduce the length of the input prompt.",
        param="input_text",
    ),
    "no prompt": refused(
        {"model": "tiny"},
        "Either prompt or prompt_embeds must be provided and non-empty.",
        param="prompt", path=TEXT,
    ),
    "prompt is empty": refused(
        {"model": "tiny", "prompt": ""},
        "Either prompt or prompt_embeds must be provided and non-empty.",
        param="prompt", path=TEXT,
    ),
    "prompt too long": refused(
        {"model": "tiny", "prompt": LONG},
        "This model's maximum context length is 512 tokens. However, your prompt contains "
        "18000 characters (more than 8192 characters, which is the upper bound for 512 "
        "input tokens). Please reduce the length of the input prompt.",
        param="input_text", path=TEXT,
    ),
    "unknown token in the prompt": refused(
        {"model": "tiny", "prompt": [99_999_999]}, "Token id 99999999 is out of vocabulary",
        path=TEXT,
    ),
    "not sent as JSON": Bad(
        b'{"model": "tiny", "prompt": "Hi"}', 400,
        "Unsupported Media Type: Only 'application/json' is allowed",
        path=TEXT, headers={"content-type": "text/plain"},
    ),
    "form for a language model": Bad(
        form("model", "tiny"), 400,
        "Unsupported Media Type: Only 'application/json' is allowed",
        headers=FORM,
    ),
    "responses without input": invalid(
        {"model": "tiny"}, "input", "Field required",
        path="/v1/responses",
    ),
    "messages without max_tokens": invalid(
        {"model": "tiny", "messages": USER},
        "max_tokens", "Field required",
        path="/v1/messages",
    ),
    "tokenize without text": Bad(
        {"model": "tiny"}, 400,
        "`prompt`: Field required; `messages`: Field required",
        param="prompt", path="/tokenize",
    ),
    "adapter with a bad field": refused(
        chat("tiny-adapter", temperature=-1),
        "temperature must be non-negative, got -1.0.",
        param="temperature",
    ),
    "no such route": Bad(
        {"model": "tiny"}, 404, "there is no /v1/nosuch here; /docs lists the routes",
        code="not_found", path="/v1/nosuch",
    ),
    "images of a language model": Bad(
        {"model": "tiny", "prompt": "x"}, 400,
        "the model 'tiny' cannot answer POST /v1/images/generations: it is for image models",
        code="unsupported", param="model", path="/v1/images/generations",
    ),
    "embeddings of a language model": Bad(
        {"model": "tiny", "input": "x"}, 400,
        "the model 'tiny' cannot answer POST /v1/embeddings: it is for embedding models",
        code="unsupported", param="model", path="/v1/embeddings",
    ),
    "PUT": Bad(
        {"model": "tiny"}, 405, "/v1/chat/completions takes POST, not PUT",
        code="method_not_allowed", method="PUT",
    ),
    "no such route of its own": Bad(
        b"", 404, "there is no /v1/nosuch here; /docs lists the routes",
        code="not_found", method="GET", path="/models/tiny/v1/nosuch",
    ),
    "another model on its own route": Bad(
        chat("echo"), 404,
        "the model 'echo' does not exist here; this is 'tiny'",
        code="model_not_found", param="model", path="/models/tiny/v1/chat/completions",
    ),
    "infer without inputs": Bad(
        {"model": "tiny"}, 400, "`inputs` is required",
        param="inputs", path=INFER,
    ),
    "infer with a list": Bad(
        {"model": "tiny", "inputs": []}, 400, "`inputs` must be an object, not a list",
        param="inputs", path=INFER,
    ),
    "infer without text": Bad(
        {"model": "tiny", "inputs": {}}, 400, "`inputs.text` is required and must be a string",
        param="inputs.text", path=INFER,
    ),
    "infer with a bad field": Bad(
        {"model": "tiny", "inputs": {"text": "a", "temperature": -1}}, 400,
        "temperature must be non-negative, got -1.0.",
        param="temperature", path=INFER,
    ),
    "infer stream with a bad field": Bad(
        {"model": "tiny", "inputs": {"text": "a", "temperature": -1}, "stream": True}, 400,
        "temperature must be non-negative, got -1.0.",
        param="temperature", path=INFER,
    ),
    "chat with an embedding model": Bad(
        chat("embedder"), 400,
        "the model 'embedder' cannot answer POST /v1/chat/completions: it is for models that "
        "generate text",
        code="unsupported", param="model",
    ),
    "embedding of nothing": refused(
        {"model": "embedder", "input": []}, "You must pass at least one prompt",
        path="/v1/embeddings",
    ),
    "embedding too long": refused(
        {"model": "embedder", "input": LONG},
        "This model's maximum context length is 512 tokens. However, your prompt contains "
        "18000 characters (more than 8192 characters, which is the upper bound for 512 "
        "input tokens). Please reduce the length of the input prompt.",
        param="input_text", path="/v1/embeddings",
    ),
    "embedding in other dimensions": refused(
        {"model": "embedder", "input": "a", "dimensions": 7},
        "Model 'embedder' does not support Matryoshka embeddings; dimensions must be unset "
        "(received dimensions=7).",
        path="/v1/embeddings",
    ),
}  # fmt: skip

CLASSES: dict[str, Bad] = {
    "temperature above 2": Bad(
        chat("echo", temperature=3), 400, "`temperature` must be at most 2, not 3",
        param="temperature",
    ),
    "temperature is text": Bad(
        chat("echo", temperature="hot"), 400,
        "`temperature` must be a number, not 'hot'",
        param="temperature",
    ),
    "top_p is 0": Bad(
        chat("echo", top_p=0), 400, "`top_p` must be more than 0, not 0",
        param="top_p",
    ),
    "seed is a fraction": Bad(
        chat("echo", seed=1.5), 400, "`seed` must be a whole number, not 1.5",
        param="seed",
    ),
    "n is 65": Bad(
        chat("echo", n=65), 400,
        "`n` is 65, but this model takes at most 32 (`serving.limits.max_n`)",
        param="n",
    ),
    "n is 0": Bad(
        chat("echo", n=0), 400, "`n` must be at least 1, not 0",
        param="n",
    ),
    "max_tokens is 0": Bad(
        chat("echo", max_tokens=0), 400,
        "`max_tokens` must be at least 1, not 0",
        param="max_tokens",
    ),
    "max_tokens is a fraction": Bad(
        chat("echo", max_tokens=1.5), 400,
        "`max_tokens` must be a whole number, not 1.5",
        param="max_tokens",
    ),
    "stop is empty": Bad(
        chat("echo", stop=[""]), 400,
        "`stop` must be a string or a list of strings, none of them empty, not a list",
        param="stop",
    ),
    "too many stops": Bad(
        chat("echo", stop=["a"] * 17), 400,
        "`stop` has 17 entries, but this model takes at most 16 "
        "(`serving.limits.max_stop_strings`)",
        param="stop",
    ),
    "tools": Bad(
        chat("echo", tools=[{**tool("f"), "type": "custom"}]), 400,
        "`tools[0].type` is 'custom', but this model calls functions only",
        code="unsupported", param="tools[0].type",
    ),
    "JSON mode": Bad(
        chat("echo", response_format={"type": "json_object"}), 400,
        "`response_format` is set, but this model answers in plain text only: nothing can bind its "
        "answers to a form (its class does not say `takes_constraint = True`)",
        code="unsupported", param="response_format",
    ),
    "logprobs": Bad(
        chat("echo", logprobs=True), 400,
        "`logprobs` is set, but this model gives no log probabilities (its class does not say "
        "`gives_logprobs = True`)",
        code="unsupported", param="logprobs",
    ),
    "stream is text": Bad(
        chat("echo", stream="yes"), 400, "`stream` must be true or false, not 'yes'",
        param="stream",
    ),
    "stream_options without stream": Bad(
        chat("echo", stream_options={"include_usage": True}), 400,
        "`stream_options` is only allowed when `stream` is true",
        param="stream_options",
    ),
    "unknown role": Bad(
        {"model": "echo", "messages": [{"role": "wizard", "content": "Hi"}]}, 400,
        "`messages[0].role` must be one of assistant, developer, function, system, tool, "
        "user, not 'wizard'",
        param="messages[0].role",
    ),
    "messages are an object": Bad(
        {"model": "echo", "messages": {}}, 400, "`messages` must be a list, not an object",
        param="messages",
    ),
    "messages are empty": Bad(
        {"model": "echo", "messages": []}, 400, "`messages` must not be empty",
        param="messages",
    ),
    "no messages": Bad({"model": "echo"}, 400, "`messages` is required", param="messages"),
    "image": Bad(
        {"model": "echo", "messages": [IMAGE]}, 400,
        "`messages[0].content[0].type` is 'image_url', but this model takes text parts only",
        code="unsupported", param="messages[0].content[0].type",
    ),
    "form": Bad(
        form("model", "echo"), 400,
        "the request body is not valid JSON: JSON is malformed: invalid character (byte 1)",
        headers=FORM,
    ),
    "no prompt": Bad({"model": "echo"}, 400, "`prompt` is required", param="prompt", path=TEXT),
    "no prompts": Bad(
        {"model": "echo", "prompt": []}, 400,
        "`prompt` must be a text, token ids, or a list of either, not a list",
        param="prompt", path=TEXT,
    ),
    "tokens as prompt": Bad(
        {"model": "echo", "prompt": [1, 2]}, 400,
        "`prompt` is set, but this model takes texts, not token ids (its class does not say "
        "`accepts_token_ids = True`)",
        code="unsupported", param="prompt", path=TEXT,
    ),
    "suffix": Bad(
        {"model": "echo", "prompt": "a", "suffix": "b"}, 400,
        "`suffix` is set, but this model inserts no text before a suffix: its tokenizer has no "
        "tokens for that",
        code="unsupported", param="suffix", path=TEXT,
    ),
    "infer without inputs": Bad(
        {"model": "echo"}, 400, "`inputs` is required",
        param="inputs", path=INFER,
    ),
    "infer with a list": Bad(
        {"model": "echo", "inputs": []}, 400, "`inputs` must be an object, not a list",
        param="inputs", path=INFER,
    ),
    "infer with a number as text": Bad(
        {"model": "echo", "inputs": {"text": 5}}, 400, "`inputs.text` must be a string",
        param="inputs.text", path=INFER,
    ),
    "infer with a number as stream": Bad(
        {"model": "echo", "inputs": {}, "stream": 1}, 400,
        "`stream` must be true or false, not 1",
        param="stream", path=INFER,
    ),
    "no such route": Bad(
        {"model": "echo", "input": "x"}, 404,
        "there is no /v1/nosuch here; /docs lists the routes",
        code="not_found", path="/v1/nosuch",
    ),
    "PATCH": Bad(
        {"model": "echo"}, 405, "/v1/infer takes POST, not PATCH",
        code="method_not_allowed", method="PATCH", path=INFER,
    ),
    "GET of its own route": Bad(
        b"", 405, "/v1/infer takes POST, not GET",
        code="method_not_allowed", method="GET", path="/models/echo/v1/infer",
    ),
    "another model on its own route": Bad(
        {"model": "tiny", "inputs": {}}, 404,
        "the model 'tiny' does not exist here; this is 'echo'",
        code="model_not_found", param="model", path="/models/echo/v1/infer",
    ),
    "no model on its own route": Bad(
        {"inputs": {}}, 400,
        "the request has no `model`: add the top-level field `model`, one of the names at "
        "GET /v1/models",
        param="model", path="/models/echo/v1/infer",
    ),
    "half a body on its own route": Bad(
        b"{", 400, "the request body is not valid JSON: Input data was truncated",
        path="/models/echo/v1/infer",
    ),
    "no such route of its own": Bad(
        b"", 404,
        "there is no /nosuch here; /docs lists the routes",
        code="not_found", method="GET", path="/models/echo/nosuch",
    ),
    "the class refuses a field": Bad(
        chat("shouting", seed=1), 400, "`seed` is not for those who shout",
        code="unsupported", param="seed",
    ),
    "the class refuses a field of a stream": Bad(
        chat("shouting", seed=1, stream=True), 400, "`seed` is not for those who shout",
        code="unsupported", param="seed",
    ),
    "the class fails": Bad(
        {"model": "shouting", "inputs": {"fail": True}}, 500,
        "the model 'shouting' failed; its log has the cause under request id bad-7",
        type="server_error", path=INFER,
    ),
    "the class misses an input": Bad(
        {"model": "shouting", "inputs": {}}, 500,
        "the model 'shouting' failed; its log has the cause under request id bad-7",
        type="server_error", path=INFER,
    ),
    "the class fails at the start of a stream": Bad(
        {"model": "spelling", "inputs": {}, "stream": True}, 500,
        "the model 'spelling' failed; its log has the cause under request id bad-7",
        type="server_error", path=INFER,
    ),
}  # fmt: skip


@pytest.mark.parametrize("bad", ROUTER.values(), ids=ROUTER.keys())
def test_the_router_refuses(service: Service, bad: Bad) -> None:
    check(service, bad)


@pytest.mark.parametrize("bad", VLLM.values(), ids=VLLM.keys())
def test_vllm_refuses(service: Service, bad: Bad) -> None:
    check(service, bad)


@pytest.mark.parametrize("bad", CLASSES.values(), ids=CLASSES.keys())
def test_a_class_refuses(service: Service, bad: Bad) -> None:
    check(service, bad)


def check(service: Service, bad: Bad) -> None:
    content = {"content": bad.body} if isinstance(bad.body, bytes) else {"json": bad.body}
    headers = {"x-request-id": REQUEST_ID, **(bad.headers or {})}
    answer = service.http.request(bad.method, bad.path, headers=headers, **content)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers.get_list("x-request-id") == [REQUEST_ID]
    assert answer.status_code == bad.status, answer.text
    fields = {"type": bad.type, "message": bad.message}
    if bad.path.startswith("/v1/messages"):
        assert answer.json() == {"type": "error", "error": fields}
    else:
        assert answer.json() == {"error": {**fields, "param": bad.param, "code": bad.code}}


def test_a_body_above_the_limit_is_refused_before_it_is_whole(service: Service) -> None:
    parts = urlsplit(service.cluster.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    with contextlib.closing(connection):
        connection.putrequest("POST", CHAT)
        connection.putheader("content-length", str(100 * 2**20))
        connection.endheaders()
        connection.send(bytes(BUFFER_BYTES))  # HAProxy passes a request on when its buffer is full
        answer = connection.getresponse()
        assert answer.status == 413
        assert b"larger than 67108864 bytes, the limit that the router's" in answer.read()


def test_a_websocket_is_refused(service: Service) -> None:
    parts = urlsplit(service.cluster.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
        connection.sendall(
            b"GET /v1/realtime HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 404")


def test_a_method_that_a_route_lacks_names_those_it_has(service: Service) -> None:
    answer = service.http.put(CHAT, json={"model": "tiny"})
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    for method, path, allow in (
        ("DELETE", "/v1/models", "GET, HEAD"),
        ("GET", "/v1/chat/completions", "POST"),
        ("GET", "/models/echo/v1/infer", "POST"),
        ("POST", "/models/echo/v1/models", "GET, HEAD"),
        ("GET", "/models/tiny/v1/infer", "POST"),
        ("GET", "/models/tiny/v1/completions", "POST"),
    ):
        answer = service.http.request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allow), path
        assert answer.json()["error"]["code"] == "method_not_allowed"
