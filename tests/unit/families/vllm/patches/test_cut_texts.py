"""Texts that are cut to a number of tokens are tokenized in a thread."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.entrypoints.pooling.base.serving import PoolingBaseServing

from deployments.vllm.patches.cut_texts import mend_cuts


class Processor:
    """Says in which thread it prepares a request."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []

    def get_request_factory_online(self, ctx: Any) -> list[str]:
        self.threads.append(threading.current_thread())
        return list(ctx.request.documents)

    async def render_async(self, document: str) -> str:
        return document.upper()


@pytest.mark.parametrize(("limit", "in_thread"), [(0, False), (8, True)])
async def test_cut_texts_leave_the_event_loop_alone(limit: int, in_thread: bool) -> None:
    mend_cuts()
    mend_cuts()
    request = SimpleNamespace(documents=["a", "b"], max_tokens_per_doc=limit)
    ctx, processor = SimpleNamespace(request=request), Processor()
    with ThreadPoolExecutor(1) as pool:
        serving: Any = SimpleNamespace(_executor=pool)
        await PoolingBaseServing._preprocessing(serving, processor, ctx)
    assert ctx.engine_inputs == ["A", "B"]
    assert [thread is threading.main_thread() for thread in processor.threads] == [not in_thread]
