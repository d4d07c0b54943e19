"""Bounds what Gradio keeps for each open page: the values it shows, and what it has not read."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

import gradio as gr
from gradio.state_holder import SessionState, StateHolder
from gradio.utils import LRUCache

from truthgpt_serve.playground.bodies import size_of

MAX_HELD, MAX_HELD_TOTAL = 32 << 20, 256 << 20
"""Bytes of messages that a page, or all pages, have not read; more are thrown away."""
MESSAGE_BYTES, VALUE_BYTES = 1024, 64
"""What a message, and each value in it, takes beside its texts."""
MAX_MESSAGES = 2000
"""Messages that a page has not read."""
MAX_EVENTS = 64
"""Requests of a page whose end it has not read."""
MAX_PAGES = 2000


class Sessions:
    """What is kept for the open pages.

    Args:
        app: Gradio's application.
        pages: The pages.
        most: Pages whose values are kept.
        lost: Told of a page that does not read: what runs for it should end.
    """

    def __init__(self, app: Any, pages: gr.Blocks, most: int, lost: Callable[[str], None]) -> None:
        self._queue = pages._queue
        self._holder = _States()
        self._lost = lost
        pages.state_session_capacity = most
        self._holder.set_blocks(pages)
        app.state_holder = self._holder
        self._messages = _AllMessages(self._end)
        self._queue.pending_messages_per_session = self._messages
        self._queue.pending_event_ids_session = LRUCache(MAX_PAGES)

    def num_unread(self, session: str) -> int:
        """Returns the bytes of the messages that a page has not read."""
        messages = self._messages.get(session)
        return messages.held if messages is not None else 0

    def is_full(self, session: str) -> bool:
        """Returns whether a page has so much unread that it may send nothing."""
        return len(self._queue.pending_event_ids_session.get(session, ())) >= MAX_EVENTS

    def _end(self, session: str) -> None:
        self._queue.pending_event_ids_session.pop(session, None)
        for event in self._queue.event_ids_to_events.values():
            if event.session_hash == session:
                event.alive = False  # Gradio tells it nothing any more
        self._lost(session)


class _State(SessionState):  # type: ignore[misc]
    """Without what Gradio keeps for links to a filled page, of which there are none."""

    def __init__(self, pages: gr.Blocks) -> None:
        super().__init__(_NoBlocks(pages.default_config))
        self.config_values: dict[int, Any] = {}

    def _update_config(self, key: int) -> None:
        pass

    def _update_value_in_config(self, key: int, value: Any) -> None:
        pass


class _NoBlocks:
    """Pages whose components are not described anew for each browser.

    Args:
        default_config: All components.
    """

    def __init__(self, default_config: Any) -> None:
        self.default_config = default_config
        self.blocks: dict[int, Any] = {}


class _States(StateHolder):  # type: ignore[misc]
    def __getitem__(self, session_id: str) -> SessionState:
        if session_id not in self.session_data:
            self.session_data[session_id] = _State(self.blocks)
        return super().__getitem__(session_id)


class _Messages(asyncio.Queue[Any]):
    """Messages of one page.

    Args:
        overflow: Called when they are too many; it throws them away.
    """

    def __init__(self, overflow: Callable[[], bool]) -> None:
        super().__init__()
        self._overflow = overflow
        self.held = 0

    def _init(self, maxsize: int) -> None:
        self._queue: deque[tuple[int, Any]] = deque()

    def _put(self, item: Any) -> None:
        output = getattr(item, "output", None)
        size = MESSAGE_BYTES + size_of(output, VALUE_BYTES, sys.getsizeof)
        self._queue.append((size, item))
        self.held += size
        if self._overflow():
            self._queue.clear()
            self.held = 0

    def _get(self) -> Any:
        size, item = self._queue.popleft()
        self.held -= size
        return item


class _AllMessages(LRUCache[str, Any]):  # type: ignore[misc]
    """Messages of all pages; Gradio puts queues of its own, which are replaced."""

    def __init__(self, end: Callable[[str], None]) -> None:
        super().__init__(MAX_PAGES)
        self._end = end

    def __setitem__(self, key: str, value: Any) -> None:
        def overflow() -> bool:
            if messages.held > MAX_HELD or messages.qsize() > MAX_MESSAGES:
                self._drop(key)
            elif sum(one.held for one in self.values()) > MAX_HELD_TOTAL:
                self._drop(max(self, key=lambda name: self[name].held))
            return self.get(key) is not messages

        messages = _Messages(overflow)
        while key not in self and len(self) >= MAX_PAGES:
            unread = (name for name, one in self.items() if one.qsize())
            self._drop(next(unread, None) or next(iter(self)))
        super().__setitem__(key, messages)

    def _drop(self, key: str) -> None:
        self.pop(key, None)
        self._end(key)
