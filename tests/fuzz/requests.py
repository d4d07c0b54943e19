"""Well-formed requests to begin with: every route that exists, with fields that it knows."""

from __future__ import annotations

import copy
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

BOUNDARY = b"fuzz"
UNKNOWN_MODEL = "nosuch"
TEXT = "Once upon a time"


@dataclass(slots=True)
class Request:
    """One request, as parts that a mutation can change.

    Attributes:
        route: The route that it began with, for the summary.
        method: HTTP method.
        path: Target as it stands in the request line.
        body: A JSON value, or bytes that are sent as they are, or None for no body.
        content_type: Value of `content-type`; None leaves it out.
        headers: Further headers.
        mutations: What was changed, for the report.
        broken: Whether it is no longer HTTP, so that a closed connection is an answer.
        raw: Bytes that are sent in place of all this.
        ends: Whether the client says that it sends no more, once it has sent it.
    """

    route: str
    method: str
    path: str
    body: Any = None
    content_type: str | None = "application/json"
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    mutations: list[str] = field(default_factory=list)
    broken: bool = False
    raw: bytes | None = None
    ends: bool = False


_SAMPLING: dict[str, Any] = {
    "temperature": 0.7, "top_p": 0.9, "top_k": 20, "min_p": 0.05, "n": 2, "seed": 5,
    "stop": ["."], "stop_token_ids": [3], "bad_words": ["moon"], "allowed_token_ids": [5, 6, 7],
    "logit_bias": {"5": 1.5}, "frequency_penalty": 0.1, "presence_penalty": 0.1,
    "repetition_penalty": 1.1, "length_penalty": 1.0, "min_tokens": 1, "ignore_eos": True,
    "prompt_logprobs": 1, "truncate_prompt_tokens": 8, "skip_special_tokens": True,
    "include_stop_str_in_output": True, "spaces_between_special_tokens": True, "priority": 0,
    "user": "somebody", "cache_salt": "salt", "request_id": "mine", "return_token_ids": True,
    "stream": True, "stream_options": {"include_usage": True}, "use_beam_search": True,
    "structured_outputs": {"choice": ["yes", "no"]}, "vllm_xargs": {"a": 1}, "best_of": 2,
    "kv_transfer_params": {"do_remote_decode": True}, "add_special_tokens": True,
    "response_format": {
        "type": "json_schema",
        "json_schema": {
            "name": "answer",
            "schema": {"type": "object", "properties": {"a": {"type": "integer", "minimum": 1}}},
        },
    },
}  # fmt: skip
_CHAT: dict[str, Any] = {
    "logprobs": True, "top_logprobs": 2, "max_completion_tokens": 4, "tool_choice": "auto",
    "parallel_tool_calls": True, "chat_template": "{{ messages }}", "echo": True,
    "chat_template_kwargs": {"enable_thinking": False}, "add_generation_prompt": True,
    "continue_final_message": False, "documents": [{"title": "a", "text": "b"}],
    "reasoning_effort": "low", "mm_processor_kwargs": {"a": 1}, "metadata": {"a": "b"},
    "tools": [
        {
            "type": "function",
            "function": {
                "name": "weather",
                "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
            },
        }
    ],
}  # fmt: skip
_COMPLETION: dict[str, Any] = {"logprobs": 1, "echo": True, "suffix": " end", "prompt_embeds": ""}
_MESSAGES = [
    [{"role": "user", "content": TEXT}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": TEXT}],
    [{"role": "user", "content": [{"type": "text", "text": TEXT}]}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a.b/c"}}]}],
    [
        {"role": "user", "content": TEXT},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": "sunny"},
    ],
]
_PROMPTS: list[Any] = [TEXT, [TEXT, "There was"], [5, 6, 7], [[5, 6], [7, 8, 9]]]


def _some(rng: random.Random, fields: dict[str, Any]) -> dict[str, Any]:
    names = rng.sample(sorted(fields), k=rng.choice([0, 0, 1, 1, 2, 4]))
    return {name: fields[name] for name in names}


def _post(path: str, fields: dict[str, Any]) -> Request:
    return Request(path, "POST", path, fields)


def chat(rng: random.Random, model: str) -> Request:
    """A chat."""
    fields = {"model": model, "messages": rng.choice(_MESSAGES), "max_tokens": 4}
    return _post("/v1/chat/completions", fields | _some(rng, _SAMPLING) | _some(rng, _CHAT))


def completion(rng: random.Random, model: str) -> Request:
    """A completion."""
    fields = {"model": model, "prompt": rng.choice(_PROMPTS), "max_tokens": 4}
    return _post("/v1/completions", fields | _some(rng, _SAMPLING) | _some(rng, _COMPLETION))


def responses(rng: random.Random, model: str) -> Request:
    """OpenAI's Responses API."""
    more = {
        "instructions": "Be brief.", "temperature": 0.5, "stream": True, "store": False,
        "top_logprobs": 1, "background": True, "previous_response_id": "resp_1",
        "text": {"format": {"type": "json_object"}}, "truncation": "auto", "include": [],
        "reasoning": {"effort": "low"}, "tool_choice": "auto", "tools": [],
    }  # fmt: skip
    fields = {"model": model, "input": TEXT, "max_output_tokens": 4}
    return _post("/v1/responses", fields | _some(rng, more))


def messages(rng: random.Random, model: str) -> Request:
    """Anthropic's Messages API."""
    more = {
        "system": "Be brief.", "temperature": 0.5, "stream": True, "stop_sequences": ["."],
        "top_k": 5, "top_p": 0.9, "metadata": {"user_id": "1"}, "tool_choice": {"type": "auto"},
        "tools": [{"name": "weather", "input_schema": {"type": "object"}}],
    }  # fmt: skip
    fields = {"model": model, "max_tokens": 4, "messages": [{"role": "user", "content": TEXT}]}
    path = rng.choice(["/v1/messages", "/v1/messages", "/v1/messages/count_tokens"])
    return _post(path, fields | _some(rng, more))


def tokens(rng: random.Random, model: str) -> Request:
    """Tokenizing, and back."""
    if rng.random() < 0.5:
        return _post("/detokenize", {"model": model, "tokens": [5, 6, 7]})
    return _post("/tokenize", {"model": model, "prompt": TEXT, "add_special_tokens": True})


def vectors(rng: random.Random, model: str) -> Request:
    """Embeddings and what is built on them."""
    path = rng.choice(["/v1/embeddings", "/v1/embeddings", "/v1/score", "/v1/rerank", "/pooling"])
    fields = {
        "model": model, "input": rng.choice(_PROMPTS), "encoding_format": "float", "query": TEXT,
        "dimensions": 8, "documents": [TEXT, "b"], "text_1": TEXT, "text_2": ["b"],
    }  # fmt: skip
    return _post(path, fields)


def infer(rng: random.Random, model: str) -> Request:
    """The route of every family."""
    inputs: dict[str, Any] = {"text": TEXT, "max_new_tokens": 4, "prompt": TEXT, "steps": 1}
    inputs |= _some(rng, _SAMPLING)
    return _post("/v1/infer", {"model": model, "inputs": inputs, "stream": rng.random() < 0.2})


def images(rng: random.Random, model: str) -> Request:
    """Image generation."""
    more = {
        "n": 1, "size": "64x64", "seed": 1, "response_format": "b64_json", "stream": True,
        "partial_images": 1, "negative_prompt": "x", "guidance_scale": 2.0, "background": "auto",
        "output_format": "png", "output_compression": 50, "quality": "low", "scheduler": "euler",
        "adapters": [{"name": "shapes-night", "weight": 0.5}], "strength": 0.5, "user": "me",
    }  # fmt: skip
    fields = {"model": model, "prompt": "a red circle", "steps": 1}
    return _post("/v1/images/generations", fields | _some(rng, more))


_Part = tuple[str, bytes, str | None]


def _form(path: str, *fields: _Part) -> Request:
    body = b""
    for name, value, file_name in fields:
        disposition = f'form-data; name="{name}"' + (
            f'; filename="{file_name}"' if file_name else ""
        )
        body += b"--%b\r\ncontent-disposition: %b\r\n\r\n%b\r\n" % (
            BOUNDARY,
            disposition.encode(),
            value,
        )
    body += b"--%b--\r\n" % BOUNDARY
    return Request(path, "POST", path, body, f"multipart/form-data; boundary={BOUNDARY.decode()}")


def upload(rng: random.Random, model: str) -> Request:
    """A form with an image or a recording."""
    path = rng.choice(["edits", "variations", "transcriptions", "translations"])
    name: _Part = ("model", model.encode(), None)
    if path in ("edits", "variations"):
        image: _Part = ("image", _png(), "a.png")
        prompt: _Part = ("prompt", b"a red circle", None)
        return _form(f"/v1/images/{path}", name, prompt, ("steps", b"1", None), image)
    form: _Part = ("response_format", b"verbose_json", None)
    file: _Part = ("file", _wav(), "a.wav")
    return _form(f"/v1/audio/{path}", name, form, file, ("temperature", b"0", None))


def _png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + checksum

    side = 16
    head = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    rows = zlib.compress((b"\0" + b"\x80\x20\x20" * side) * side)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def _wav() -> bytes:
    samples = b"\0\1" * 1600
    head = b"RIFF" + (36 + len(samples)).to_bytes(4, "little") + b"WAVEfmt " + b"\x10\0\0\0"
    head += b"\1\0\1\0" + (16000).to_bytes(4, "little") + (32000).to_bytes(4, "little")
    return head + b"\2\0\x10\0data" + len(samples).to_bytes(4, "little") + samples


def tensors(rng: random.Random, model: str) -> Request:
    """The Open Inference Protocol."""
    data = [1.0, 2.0, 3.0, 4.0]
    tensor: dict[str, Any] = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": data}
    request = _post(f"/v2/models/{model}/infer", {"inputs": [tensor], "outputs": [{"name": "y"}]})
    request.route = "/v2/models/{m}/infer"
    return request


def plain(rng: random.Random, model: str) -> Request:
    """Routes without a body."""
    path = rng.choice(
        [
            "/v1/models",
            f"/v1/models/{model}",
            "/health",
            "/ready",
            "/metrics",
            "/v2",
            "/v1/files",
            f"/v2/models/{model}",
            f"/v2/models/{model}/ready",
            "/v2/health/live",
            "/openapi.json",
            f"/models/{model}/health",
            f"/models/{model}/metrics",
            "/models/nosuch/health",
            "/docs",
            "/v1/images/files/x.png",
            "/scale_elastic_ep",
            "/load",
            "/version",
            "/invocations",
            "/sleep",
            "/reset_prefix_cache",
            "/v1/load_lora_adapter",
            "/server_info",
            "/-/routes",
        ]
    )
    return Request(path.replace(model, "{m}"), rng.choice(["GET", "GET", "POST"]), path)


_BUILDERS: list[Callable[[random.Random, str], Request]] = [
    *[chat] * 5, *[completion] * 5, responses, messages, messages, tokens, vectors, infer, infer,
    images, images, upload, tensors, plain, plain,
]  # fmt: skip


def build(rng: random.Random, models: list[str]) -> Request:
    """Returns a well-formed request for a route and a model that may not go together."""
    model = UNKNOWN_MODEL if rng.random() < 0.04 else rng.choice(models)
    request = rng.choice(_BUILDERS)(rng, model)
    request.body = copy.deepcopy(request.body)  # its parts are others' too, and are changed
    if rng.random() < 0.15 and request.path.startswith(("/v1/", "/v2/", "/tokenize")):
        request.path = f"/models/{model}{request.path}"
    return request
