"""Chooses the parsers of tool calls and of reasoning that fit a model's chat template.

What `serving.engine` says counts: `tool_call_parser`, `reasoning_parser` (an empty text for none),
and `enable_auto_tool_choice: false` for no tools.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

from vllm.renderers.chat_utils import load_chat_template
from vllm.tokenizers import get_tokenizer

from deployments.vllm.arguments import load_arguments
from truthgpt_serve.server.text.reasoning import find_reasoning
from truthgpt_serve.server.text.tools.form import Form
from truthgpt_serve.server.text.tools.template_form import Apply, find_form, takes_tools

logger = logging.getLogger(__name__)
_PACKAGES = {"cohere_command3": "cohere_melody"}
"""Packages that some of vLLM's parsers need."""
_OWN_TOKENIZER = frozenset(("mistral",))
"""Parsers of thoughts that want another tokenizer than transformers'."""


def choose_parsers(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Returns engine arguments, none where the template is no clear sign or cannot be read.

    Args:
        cfg: The whole configuration.
    """
    engine = cfg["serving"]["engine"]
    wants_tools = _is_open(engine, "tool_call_parser", "enable_auto_tool_choice")
    wants_reasoning = _is_open(engine, "reasoning_parser", "reasoning_parser_plugin")
    if cfg["task"] != "text-generation" or not (wants_tools or wants_reasoning):
        return {}
    try:
        tokenizer = _load_tokenizer(cfg)
        apply = _find_template(tokenizer, engine.get("chat_template"))
        chosen = _choose(apply, tokenizer) if apply is not None else {}
    except Exception:  # the engine reads the same files and says what is wrong with them
        logger.info("the chat template cannot be read", exc_info=True)
        return {}
    if not wants_reasoning:
        chosen.pop("reasoning_parser", None)
    if not wants_tools:
        chosen.pop("tool_call_parser", None)
    elif "tool_call_parser" in chosen:
        chosen["enable_auto_tool_choice"] = True
    if chosen:
        logger.info("chosen by the chat template: %s", chosen)
    return chosen


def _is_open(engine: Mapping[str, Any], *names: str) -> bool:
    if engine.get("skip_tokenizer_init"):
        return False
    return all(engine.get(name) is None for name in names)


def _load_tokenizer(cfg: Mapping[str, Any]) -> Any:
    engine, model = cfg["serving"]["engine"], cfg["model"]
    own = engine.get("tokenizer")
    return get_tokenizer(
        own or model["name_or_path"],
        revision=engine.get("tokenizer_revision") or (None if own else model["revision"]),
        tokenizer_mode=engine.get("tokenizer_mode") or "auto",
        trust_remote_code=bool(engine.get("trust_remote_code")),
    )


def _find_template(tokenizer: Any, given: str | None) -> Apply | None:
    apply: Apply | None = getattr(tokenizer, "apply_chat_template", None)
    if apply is None or given is None:
        return apply if getattr(tokenizer, "chat_template", None) is not None else None
    return partial(apply, chat_template=load_chat_template(given))


def _choose(apply: Apply, tokenizer: Any) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    form = find_form(apply) if takes_tools(apply) else None
    known = load_arguments()["tool_call_parser"]["known"]
    if form is not None and form.name in known and _has_parts(form, tokenizer):
        chosen["tool_call_parser"] = form.name
    reasoning = find_reasoning(apply, tokenizer.get_vocab())
    name = "" if reasoning is None else reasoning.name
    if name not in ("", *_OWN_TOKENIZER) and _has_package(name):
        chosen["reasoning_parser"] = name
    return chosen


def _has_package(name: str) -> bool:
    package = _PACKAGES.get(name)
    return package is None or importlib.util.find_spec(package) is not None


def _has_parts(form: Form, tokenizer: Any) -> bool:
    """Returns whether the package and the tokens are there without which vLLM's parser raises."""
    if not _has_package(form.name):
        return False
    return not form.needs_tokens or {form.begin, form.end} - {""} <= tokenizer.get_vocab().keys()
