"""The backend of a started engine, for the model's card, from vLLM's own configuration."""

from __future__ import annotations

import logging
from typing import Any

from vllm.config import set_current_vllm_config
from vllm.platforms import current_platform
from vllm.v1.attention.selector import get_attn_backend

logger = logging.getLogger(__name__)


def describe(config: Any) -> dict[str, Any]:
    """Returns the model's backend, for its card.

    Args:
        config: The configuration of a started engine, with what vLLM has decided.
    """
    model, cache, compilation = config.model_config, config.cache_config, config.compilation_config
    return {
        "device": current_platform.device_type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": _attention(config),
        "quantization": model.quantization,
        "compile": None if model.enforce_eager else str(getattr(compilation.mode, "name", None)),
        "cuda_graphs": str(getattr(compilation.cudagraph_mode, "name", "NONE")),
        "kv_cache_dtype": cache.cache_dtype,
        "kv_cache_tokens": cache.kv_cache_size_tokens,
        "prefix_caching": bool(cache.enable_prefix_caching),
        "tensor_parallel_size": config.parallel_config.tensor_parallel_size,
        "max_num_seqs": config.scheduler_config.max_num_seqs,
    }


def describe_capabilities(model_config: Any, args: Any) -> dict[str, Any]:
    """Returns what a model that generates text can do, as the card of any family says it.

    Args:
        model_config: vLLM's `ModelConfig`.
        args: The engine's arguments.
    """
    media = model_config.multimodal_config if model_config.is_multimodal_model else None
    images = 0
    if media is not None and hasattr(model_config.hf_config, "vision_config"):
        images = media.get_limit_per_prompt("image")
    has_tokenizer = not model_config.skip_tokenizer_init
    return {
        "context_length": model_config.max_model_len,
        "tools": bool(args.enable_auto_tool_choice and args.tool_call_parser),
        "json": has_tokenizer,
        "logprobs": model_config.max_logprobs != 0,
        "prompt_logprobs": model_config.max_logprobs != 0,
        "token_ids": True,
        "logit_bias": True,
        "images": images > 0,
        "reasoning": bool(args.reasoning_parser),
    }


def _attention(config: Any) -> str | None:
    """Returns the backend of the attention layers; None for a model of another kind.

    Unless it was named, the engine's process chooses it as it builds the layers and does not say
    which: here the same function chooses again.
    """
    model = config.model_config
    if (named := config.attention_config.backend) is not None:
        return str(named.name)
    try:
        with set_current_vllm_config(config):
            backend = get_attn_backend(
                model.get_head_size(),
                model.dtype,
                config.cache_config.cache_dtype,
                use_mla=model.use_mla,
                num_heads=model.get_num_attention_heads(config.parallel_config),
            )
        return str(backend.get_name())
    except Exception:  # state-space models and the like; a card is no reason to fail
        logger.info("the attention backend is not known", exc_info=True)
        return None
