"""Compiles what binds answers for a model in this process, off the event loop and in bounds.

A process of its own tries each grammar first, since some never end; what passes is compiled here,
and kept.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from truthgpt_serve.errors import UnsupportedError
from truthgpt_serve.grammar.fields import Grammar
from truthgpt_serve.grammar.gate import GrammarGate
from truthgpt_serve.grammar.kinds import as_compiled

CACHE_BYTES = 128 << 20
"""Compiled grammars that are kept."""
MAX_THREADS = 2


class ConstraintCompiler:
    """Compiles for one model. `xgrammar` is imported with the first grammar.

    Args:
        limits: `serving.limits`.
        tokenizer: The model's tokenizer, one of transformers'.
        vocab_size: Logits of one position; None takes the tokenizer's number of tokens.
        end_ids: Tokens that end an answer; none takes the tokenizer's.
    """

    def __init__(
        self,
        limits: Mapping[str, Any],
        tokenizer: Any,
        *,
        vocab_size: int | None = None,
        end_ids: Sequence[int] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._end_ids = sorted(end_ids)
        self._compilers: dict[bool, Any] = {}
        """By whether the answer is JSON."""
        self._problem = "its tokenizer is not known yet"
        self._gate = GrammarGate(limits, self._describe, as_compiled)
        self._pool = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="grammar")

    def _describe(self) -> dict[str, Any]:
        """Reads the tokenizer, and returns what the process that tries grammars needs."""
        try:
            import xgrammar

            from truthgpt_serve.grammar.compile import Compiler

            found = xgrammar.TokenizerInfo.from_huggingface(
                self._tokenizer, vocab_size=self._vocab_size, stop_token_ids=self._end_ids or None
            )
            plain = without(found, special_ids(self._tokenizer))
            json = without(plain, control_ids(plain))
        except Exception as error:
            self._problem = f"{type(error).__name__}: {error}"
            raise
        settings: dict[str, Any] = {
            "tokenizer_info": plain.serialize_json(),
            "any_whitespace": False,  # small models would go on with blanks for ever
            "threads": min(MAX_THREADS, os.cpu_count() or 1),
        }
        own = settings | {"cache_bytes": CACHE_BYTES}
        self._compilers = {
            False: Compiler(**own),
            True: Compiler(**own | {"tokenizer_info": json.serialize_json()}),
        }
        return settings

    async def compile(self, grammar: Grammar) -> Any:
        """Returns a grammar compiled, an `xgrammar.CompiledGrammar`.

        Raises:
            RequestError: It is too large, wrong or too slow; `param` names its field.
            UnsupportedError: The tokenizer is of a kind that cannot be bound.
            OverloadedError: Too many grammars are being compiled.
            UnavailableError: The process that tries grammars does not start.
        """
        await self._gate.check(grammar)
        if not self._compilers:
            message = f"`{grammar.param}` cannot bind the answers of this model: {self._problem}"
            raise UnsupportedError(message, param=grammar.param)
        kind, text = as_compiled(grammar.kind, grammar.text)
        loop = asyncio.get_running_loop()
        compiler = self._compilers[kind == "json"]
        return await loop.run_in_executor(self._pool, compiler.compile, kind, text)

    def close(self) -> None:
        """Ends the process and the threads; safe to call twice."""
        self._gate.close()
        self._pool.shutdown(wait=False, cancel_futures=True)


def special_ids(tokenizer: Any) -> set[int]:
    """Returns the tokens of one of transformers' tokenizers that are no text of an answer."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {
        *getattr(tokenizer, "all_special_ids", ()),
        *(token for token, known in added.items() if known.special),
    }


def control_ids(info: Any) -> set[int]:
    """Returns the tokens with control characters, which JSON on one line has nowhere.

    xgrammar lets some of them into texts of bounded length.
    """
    return {
        token for token, word in enumerate(info.decoded_vocab) if any(byte < 32 for byte in word)
    }


def without(info: Any, tokens: set[int]) -> Any:
    """Returns an `xgrammar.TokenizerInfo` in which some tokens, but for ends, are never allowed."""
    import xgrammar

    kept = tokens - set(info.stop_token_ids)
    words = [b"" if token in kept else word for token, word in enumerate(info.decoded_vocab)]
    return xgrammar.TokenizerInfo(
        words,
        vocab_type=xgrammar.VocabType.RAW,
        vocab_size=info.vocab_size,
        stop_token_ids=info.stop_token_ids,
        add_prefix_space=info.add_prefix_space,
    )
