"""The family `onnxruntime` as a class for texts, made one token after the other."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from deployments.onnx.config import find_file, settings_of
from deployments.onnx.engine import Session
from deployments.onnx.text.files import TextInfo, read_info
from deployments.onnx.text.graph import DecoderGraph
from deployments.onnx.text.request import TextCall, read_call
from deployments.onnx.text.sampling import Sampler, logprob_entry
from truthgpt_serve.errors import ConfigError, Fault, ServerError
from truthgpt_serve.server.text.detokenizer import Detokenizer

logger = logging.getLogger(__name__)

MAX_HELD = 16
"""Tokens after which bytes that never become a character are let through."""


class OnnxTextModel:
    """A language model in an .onnx file; each request is computed by itself.

    Attributes:
        tokenizer: The model's tokenizer, once it is loaded.
        default_max_new_tokens: Tokens of an answer when the request does not say.
        max_model_len: Tokens of prompt and answer together, once it is loaded.
        repeats_prompt: False: the text is the answer only, even when it begins like the prompt.
        accepts_token_ids: Prompts may come as token ids.
        gives_logprobs: Tokens may come with their log probabilities.
        takes_logit_bias: Logits may be changed by `logit_bias`.
        takes_stop_token_ids: Answers end at `stop_token_ids` too.
        acceleration: The model's backend, for its card; empty before `load`.
    """

    repeats_prompt = False
    accepts_token_ids = True
    gives_logprobs = True
    takes_logit_bias = True
    takes_stop_token_ids = True

    def __init__(self) -> None:
        self.tokenizer: Any = None
        self.default_max_new_tokens = 256
        self.max_model_len: int | None = None
        self.acceleration: dict[str, Any] = {}
        self._graph: DecoderGraph | None = None
        self._info: TextInfo | None = None

    def load(self, cfg: dict[str, Any]) -> None:
        """Loads graph and tokenizer.

        Raises:
            ConfigError: There is no such file, it is no decoder of texts, or the execution provider
                does not work here.
        """
        path = find_file(cfg)
        if isinstance(path, Fault):
            raise ConfigError([path])
        self._settings = settings_of(cfg)
        self._info = info = read_info(path, self._settings)
        session = Session(path, cfg)
        self._graph = graph = DecoderGraph(session, str(path))
        self.tokenizer = info.tokenizer
        self.max_model_len = info.max_model_len
        self.default_max_new_tokens = self._settings.default_max_new_tokens
        self.acceleration = {**session.acceleration, "kv_cache": graph.keeps_cache}
        if not graph.keeps_cache:
            logger.warning("%s has no cache: each token computes the whole text again", path)

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Returns a whole text; see `stream`."""
        parts: list[str] = []
        entries: list[Any] = []
        last: dict[str, Any] = {}
        for item in self.stream(inputs):
            parts.append(item["text"])
            entries += item.get("logprobs", ())
            last = item
        more = {"logprobs": entries} if "logprobs" in last else {}
        return {**last, **more, "text": "".join(parts)}

    def stream(self, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yields `{"text": delta}`, the last with `finish_reason` and `usage`.

        Args:
            inputs: `text` or `token_ids`, and what else docs/tensors.md lists.

        Raises:
            RequestError: An input is wrong.
            ServerError: The graph failed.
        """
        if self._graph is None or self._info is None:
            raise ServerError("the model is not loaded: call `load(cfg)` first")
        call = read_call(inputs, self._info, self._settings, self._graph.vocab_size)
        return self._generate(self._graph, call)

    def _generate(self, graph: DecoderGraph, call: TextCall) -> Iterator[dict[str, Any]]:
        sampler = Sampler(call.sampling, call.prompt, call.end_ids)
        pieces = Detokenizer(self._decode, max_held=MAX_HELD)
        progress, tail = graph.begin(), Tail(call.stops)
        logits = graph.read(progress, call.prompt)
        reason, made, entries = "length", 0, []
        while True:
            token = sampler.choose(logits)
            made += 1
            if call.num_top is not None:
                entries.append(logprob_entry(logits, token, call.num_top))
            text = "" if token in call.end_ids else pieces.push(token)
            if token in call.end_ids or tail.ends(text):
                reason = "stop"
                break
            if made == call.max_new_tokens:
                break
            if text:
                yield {"text": text, **_noted(call, entries)}
                text, entries = "", []
            logits = graph.read(progress, [token])
        prompt = len(call.prompt)
        usage = {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}
        last = {"text": text + pieces.flush(), **_noted(call, entries)}
        yield {**last, "finish_reason": reason, "usage": usage}

    def _decode(self, tokens: list[int]) -> str:
        decode = self.tokenizer.decode
        return str(decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def close(self) -> None:
        """Frees the graph."""
        self._graph = None


class Tail:
    """Finds the texts that end an answer, also across pieces; the server cuts them off.

    Args:
        stops: The texts.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._length = max(map(len, stops), default=1) - 1
        self._text = ""

    def ends(self, piece: str) -> bool:
        """Returns whether one of the texts is complete with a further piece."""
        text = self._text + piece
        self._text = text[-self._length :] if self._length else ""
        return any(stop in text for stop in self._stops)


def _noted(call: TextCall, entries: list[dict[str, Any]]) -> dict[str, Any]:
    return {} if call.num_top is None else {"logprobs": entries}
