"""Has vLLM cut the texts of scores and rankings in the tokenizer's threads.

With `max_tokens_per_doc` or `max_tokens_per_query` it tokenizes them on the event loop, where all
requests of the model, and its health checks, wait for it: some 4 s for the longest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from deployments.vllm.patches.methods import replace_method


def mend_cuts() -> None:
    """Changes vLLM's class in this process; a second call does nothing.

    Raises:
        RuntimeError: vLLM moved what this changes.
    """
    from vllm.entrypoints.pooling.base.serving import PoolingBaseServing

    replace_method(PoolingBaseServing, "_preprocessing", ("io_processor", "ctx"), _wrap)


def _wrap(original: Callable[..., Any]) -> Callable[..., Any]:
    async def preprocessing(self: Any, io_processor: Any, ctx: Any) -> None:
        if _is_cut(ctx.request):
            prepare, loop = io_processor.get_request_factory_online, asyncio.get_running_loop()
            requests = await loop.run_in_executor(self._executor, prepare, ctx)
            io_processor = SimpleNamespace(
                get_request_factory_online=lambda _: requests,
                render_async=io_processor.render_async,
            )
        await original(self, io_processor, ctx)

    return preprocessing


def _is_cut(request: Any) -> bool:
    fields = ("max_tokens_per_doc", "max_tokens_per_query")
    return any(getattr(request, name, 0) for name in fields)
