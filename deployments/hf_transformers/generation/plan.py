"""What a language model takes: its limits, its defaults, and the size of its cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from deployments.hf_transformers.config import TransformersSettings, default_ongoing_requests
from deployments.hf_transformers.generation.padded import PaddedPlan
from deployments.hf_transformers.generation.paged import PagedPlan
from truthgpt_serve.server.text.sampling import (
    CONFIGURED,
    LENGTHS,
    SamplingDefaults,
    find_length,
    read_defaults,
)

CPU_CACHE_BYTES = 1 << 30
GPU_CACHE_SHARE = 0.8
"""Part of what the weights leave of the GPU's share; the rest is for the forward pass."""
CPU_BATCH_TOKENS = 512
GPU_BATCH_TOKENS = 8192
PAGE_TOKENS = 32
FLASH_PAGE_TOKENS = 256
"""Flash attention's kernels read pages of a multiple of 256 tokens."""

PLAIN_ONLY = (
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "sequence_bias",
    "guidance_scale",
    "exponential_decay_length_penalty",
    "encoder_repetition_penalty",
)
"""Fields of a model's generation configuration that only `model.generate` applies."""


@dataclass(frozen=True, slots=True)
class TextInfo:
    """What a language model says of itself.

    Attributes:
        defaults: How its authors want tokens to be chosen, and what ends an answer.
        pad_id: Token that fills up shorter rows.
        max_model_len: Tokens of prompt and answer together.
        encodes: Whether the prompt goes into an encoder, apart from the answer.
        pages: Whether a paged cache is worth a trial.
        vocab_size: Tokens that the model knows.
    """

    defaults: SamplingDefaults
    pad_id: int
    max_model_len: int
    encodes: bool
    pages: bool
    vocab_size: int


def read_info(model: Any, tokenizer: Any, settings: TransformersSettings) -> TextInfo:
    """Reads the model's generation configuration, and takes out of it what is done here instead."""
    own = model.generation_config
    end = own.eos_token_id if own.eos_token_id is not None else tokenizer.eos_token_id
    defaults = read_defaults({name: getattr(own, name, None) for name in CONFIGURED}, end)
    pad = own.pad_token_id if own.pad_token_id is not None else tokenizer.pad_token_id
    encodes = bool(model.config.is_encoder_decoder)
    config = model.config.get_text_config()
    lengths = [getattr(config, name, None) for name in LENGTHS]
    info = TextInfo(
        defaults=defaults,
        pad_id=int(pad if pad is not None else min(defaults.end_ids, default=0)),
        max_model_len=settings.max_model_len or find_length(lengths, tokenizer),
        encodes=encodes,
        pages=not encodes and all(getattr(own, name, None) in (None, []) for name in PLAIN_ONLY),
        vocab_size=int(model.config.get_text_config(decoder=True).vocab_size),
    )
    kept = {name: getattr(own, name, None) for name in (*PLAIN_ONLY, "decoder_start_token_id")}
    model.generation_config = GenerationConfig(
        bos_token_id=own.bos_token_id, pad_token_id=info.pad_id, do_sample=False, **kept
    )
    return info


def plan_rows(cfg: Mapping[str, Any], settings: TransformersSettings) -> tuple[int, int]:
    """Returns how many sequences share a forward pass, and how many more requests may wait."""
    serving = cfg["serving"]
    ongoing = int(serving["max_ongoing_requests"] or default_ongoing_requests(cfg))
    rows = settings.max_rows or ongoing
    queued = serving["max_queued_requests"]
    waiting = ongoing + (2 * ongoing if queued is None else int(queued)) - rows
    return rows, max(waiting, rows)


def plan_pages(
    cfg: Mapping[str, Any], settings: TransformersSettings, model: Any, max_model_len: int
) -> PagedPlan:
    """Returns the size of a paged cache.

    On attention that needs a mask, the mask has an entry for each token of a batch and of the
    cache: it comes out of the same memory.
    """
    flash = str(model.config._attn_implementation).startswith("flash")
    page = FLASH_PAGE_TOKENS if flash else PAGE_TOKENS
    on_gpu = model.device.type == "cuda"
    batch_tokens = settings.max_batch_tokens or (GPU_BATCH_TOKENS if on_gpu else CPU_BATCH_TOKENS)
    rows, waiting = plan_rows(cfg, settings)
    per_token = cache_token_bytes(model) + (0 if flash else batch_tokens * model.dtype.itemsize)
    wanted = rows * (-(-max_model_len // page) + 1)
    limit = settings.kv_cache_bytes or (_gpu_bytes(cfg, model) if on_gpu else CPU_CACHE_BYTES)
    return PagedPlan(
        page_tokens=page,
        num_pages=max(1, min(wanted, limit // (per_token * page))),
        max_batch_tokens=batch_tokens,
        max_rows=rows,
        max_waiting=waiting,
        prefix_cache=settings.prefix_cache,
    )


def cache_token_bytes(model: Any) -> int:
    """Returns how many bytes the keys and values of one token take in all layers."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * size * model.dtype.itemsize)


def _gpu_bytes(cfg: Mapping[str, Any], model: Any) -> int:
    free, total = torch.cuda.mem_get_info(model.device)
    gpus = cfg["hardware"]["gpus"]
    share = gpus if isinstance(gpus, float) and 0 < gpus < 1 else 1.0
    left = min(free, int(share * total) - torch.cuda.memory_reserved(model.device))
    return max(0, int(GPU_CACHE_SHARE * left))


def plan_padding(
    cfg: Mapping[str, Any], settings: TransformersSettings, info: TextInfo, *, mixed: bool
) -> PaddedPlan:
    """Returns how padded batches are made."""
    rows, waiting = plan_rows(cfg, settings)
    return PaddedPlan(
        max_rows=rows,
        max_waiting=waiting,
        wait_s=float(cfg["serving"]["batching"]["batch_wait_timeout_s"]),
        pad_id=info.pad_id,
        use_cache=settings.use_cache,
        mixed_lengths=mixed,
    )
