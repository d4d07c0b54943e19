"""The embedding engine of one replica: texts in, vectors out, many texts in few forward passes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy
import torch
import transformers

from deployments.hf_transformers.attention import choose_attention
from deployments.hf_transformers.compilation import compile_model
from deployments.hf_transformers.config import TransformersSettings
from deployments.hf_transformers.embedding.dense import load_dense
from deployments.hf_transformers.embedding.layout import read_layout
from deployments.hf_transformers.embedding.pooling import normalize, pool
from deployments.hf_transformers.loading import (
    load_config,
    load_model,
    load_tokenizer,
    max_input_tokens,
    read_source,
)
from truthgpt_serve.device import describe_backend
from truthgpt_serve.errors import ContextLengthError, RequestError
from truthgpt_serve.server.text_sizes import check_beginning, check_cut

logger = logging.getLogger(__name__)

CPU_BATCH_TOKENS = 2048
GPU_BATCH_TOKENS = 32768
UNKNOWN_MODEL_LEN = 512
TRIAL_LENGTHS = (3, 8, 16)


@dataclass(frozen=True, slots=True)
class Item:
    """One text, tokenized.

    Attributes:
        ids: Token ids, special ones included.
        dimensions: Values wanted of the vector, or None for all.
    """

    ids: list[int]
    dimensions: int | None


class EmbeddingEngine:
    """Loads an embedding model and computes vectors; one thread at a time.

    Args:
        cfg: The whole configuration as a nested dict.

    Attributes:
        tokenizer: The model's tokenizer.
        size: Values of a whole vector.
        max_tokens: Most tokens of a text.
        attention: The attention that computes.
        acceleration: The model's backend, for its card.

    Raises:
        ConfigError: The weights cannot be loaded, or the machine cannot do what is asked for.
    """

    def __init__(self, cfg: Mapping[str, Any]) -> None:
        settings = TransformersSettings.model_validate(cfg["serving"]["engine"])
        source = read_source(cfg)
        config = load_config(source)
        self.tokenizer = load_tokenizer(source)
        self._layout = read_layout(source, config, settings)
        self._model = load_model(transformers.AutoModel, source, config)
        self._dense = [load_dense(source, folder) for folder in self._layout.dense]
        for layer in self._dense:
            layer.to(source.device)
        self._pad_id = self.tokenizer.pad_token_id or 0
        self.max_tokens = settings.max_model_len or self._own_length(config)
        on_gpu = source.device.type == "cuda"
        usual = GPU_BATCH_TOKENS if on_gpu else CPU_BATCH_TOKENS
        self._batch_tokens = settings.max_batch_tokens or usual
        self._trials = [Item(_trial_ids(config, length), None) for length in TRIAL_LENGTHS]
        wanted = str(cfg["model_optim"]["attention"])
        self.attention = choose_attention(wanted, self._model, self.trial)
        if cfg["model_optim"]["compile"]:
            batches = [self._trials[:1], self._trials[2:], self._trials, self._trials * 4]
            trials = [partial(self._forward, batch) for batch in batches]
            compile_model(self._model, settings.compile_mode, trials)
        self.acceleration = describe_backend(
            self._model.device, self._model.dtype, self.attention, cfg["model_optim"]
        )
        with torch.inference_mode():
            self.size = self.trial().shape[-1]
        logger.info(
            "attention: %s; pooling: %s, by %s; normalized: %s; %d values",
            self.attention,
            "+".join(self._layout.pooling),
            self._layout.source,
            self._layout.normalize,
            self.size,
        )

    def trial(self) -> torch.Tensor:
        """Returns the vectors of a few texts of arbitrary tokens."""
        return self._forward(self._trials)

    def _own_length(self, config: Any) -> int:
        length = max_input_tokens(config, self.tokenizer) or UNKNOWN_MODEL_LEN
        return min(length, self._layout.max_tokens or length)

    # -- requests

    def infer_batch(
        self, batch: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any] | RequestError]:
        """Computes the vectors of many texts.

        Args:
            batch: For each text `text` or `token_ids`; optionally `dimensions` and
                `truncate_prompt_tokens` (-1 for as many as the model takes).

        Returns:
            For each `embedding`, float32 `[dimensions]`, and `num_tokens`; or the RequestError of a
            text that is too long or has a wrong input.
        """
        items = self._read(batch)
        answers: list[dict[str, Any] | RequestError] = [
            item if isinstance(item, RequestError) else {} for item in items
        ]
        good = {place: item for place, item in enumerate(items) if isinstance(item, Item)}
        with torch.inference_mode():
            for places in self._split({place: len(item.ids) for place, item in good.items()}):
                found = self._forward([good[place] for place in places])
                for place, vector in zip(places, found.float().cpu().numpy(), strict=True):
                    item = good[place]
                    answers[place] = {
                        "embedding": self._cut(vector, item.dimensions),
                        "num_tokens": len(item.ids),
                    }
        return answers

    def _read(self, batch: Sequence[Mapping[str, Any]]) -> list[Item | RequestError]:
        """Checks the inputs and tokenizes all texts in one call, which uses several cores."""
        texts = [self._text(inputs) for inputs in batch]
        refused = [self._refused(*one) for one in zip(batch, texts, strict=True)]
        given = [
            text
            for text, error in zip(texts, refused, strict=True)
            if text is not None and error is None
        ]
        encoded = iter(self.tokenizer(given)["input_ids"] if given else [])
        items: list[Item | RequestError] = []
        for inputs, text, error in zip(batch, texts, refused, strict=True):
            if error is not None:
                items.append(error)
                continue
            ids: list[int] = next(encoded) if text is not None else []
            try:
                if text is None:
                    ids = _token_ids(inputs.get("token_ids"), len(self.tokenizer))
                limited = self._limited(ids, inputs, text)
                items.append(Item(limited, self._dimensions(inputs)))
            except RequestError as problem:
                items.append(problem)
        return items

    def _refused(self, inputs: Mapping[str, Any], text: str | None) -> RequestError | None:
        """Returns the error of a text that is clearly too long before it is tokenized, or None."""
        if text is None:
            return None
        try:
            if inputs.get("truncate_prompt_tokens") is not None:
                check_cut(len(text))
            else:
                check_beginning(text, self.max_tokens, self._count, param="input")
        except RequestError as error:
            return error
        return None

    def _count(self, text: str) -> int:
        return len(self.tokenizer(text, verbose=False)["input_ids"])

    def _text(self, inputs: Mapping[str, Any]) -> str | None:
        """Returns the text with its prompt; None when it comes as token ids, or is no text."""
        text = inputs.get("text")
        if not isinstance(text, str) or not text:
            return None
        text = self._layout.prompt + text
        return text.lower() if self._layout.lower_case else text

    def _limited(self, ids: list[int], inputs: Mapping[str, Any], text: str | None) -> list[int]:
        """Returns the tokens of a text that the model takes."""
        limit = inputs.get("truncate_prompt_tokens")
        if limit is None:
            if len(ids) > self.max_tokens:
                raise ContextLengthError(
                    self.max_tokens,
                    len(ids),
                    param="input",
                    advice="Please shorten the text, or send `truncate_prompt_tokens: -1`.",
                )
            return ids
        if isinstance(limit, bool) or not isinstance(limit, int) or not (limit > 0 or limit == -1):
            raise RequestError(
                "`truncate_prompt_tokens` must be -1 or a whole number of at least 1",
                param="truncate_prompt_tokens",
            )
        limit = self.max_tokens if limit == -1 else min(limit, self.max_tokens)
        if len(ids) <= limit:
            return ids
        if text is None:
            return ids[:limit]
        cut: list[int] = self.tokenizer(text, truncation=True, max_length=limit)["input_ids"]
        return cut

    def _dimensions(self, inputs: Mapping[str, Any]) -> int | None:
        wanted = inputs.get("dimensions")
        if wanted is None:
            return None
        whole = isinstance(wanted, int) and not isinstance(wanted, bool)
        if not whole or not 1 <= wanted <= self.size:
            message = f"`dimensions` must be a whole number from 1 to {self.size}"
            raise RequestError(message, param="dimensions")
        return int(wanted)

    # -- computation

    def _split(self, lengths: Mapping[int, int]) -> Iterator[list[int]]:
        """Yields the places of each forward pass: texts of like length, at most so many tokens."""
        batch: list[int] = []
        for place in sorted(lengths, key=lambda place: -lengths[place]):
            longest = lengths[batch[0]] if batch else 0
            if batch and (len(batch) + 1) * longest > self._batch_tokens:
                yield batch
                batch = []
            batch.append(place)
        if batch:
            yield batch

    def _forward(self, items: Sequence[Item]) -> torch.Tensor:
        """Returns the vectors `[texts, size]` of one forward pass."""
        longest = max(len(item.ids) for item in items)
        ids = torch.full((len(items), longest), self._pad_id)
        mask = torch.zeros_like(ids)
        for row, item in enumerate(items):
            ids[row, : len(item.ids)] = torch.tensor(item.ids)
            mask[row, : len(item.ids)] = 1
        device = self._model.device
        ids, mask = ids.to(device), mask.to(device)
        hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
        vectors = pool(self._layout.pooling, hidden, mask)
        for layer in self._dense:
            vectors = layer(vectors.to(next(layer.parameters()).dtype))
        return normalize(vectors) if self._layout.normalize else vectors

    def _cut(self, vector: Any, dimensions: int | None) -> Any:
        if dimensions is None or dimensions == len(vector):
            return vector
        vector = vector[:dimensions]
        if not self._layout.normalize:
            return vector
        length = numpy.linalg.norm(vector)
        return vector / length if length > 0 else vector


def _token_ids(value: Any, size: int) -> list[int]:
    fine = isinstance(value, list) and value
    if not fine or not all(type(token) is int and 0 <= token < size for token in value):
        message = (
            "the input must be a text that is not empty, or a list of token ids: whole numbers "
            f"from 0 to {size - 1}"
        )
        raise RequestError(message, param="input")
    return list(value)


def _trial_ids(config: Any, length: int) -> list[int]:
    size = int(config.get_text_config().vocab_size)
    return [(37 * i + 11) % size for i in range(length)]
