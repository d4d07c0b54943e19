"""What has been sent of an answer, in whole events."""

from __future__ import annotations

from truthgpt_serve.http.asgi import Message, Send
from truthgpt_serve.http.foreign_errors import is_error_event
from truthgpt_serve.http.sse import WholeEvents, is_event_stream, split_events
from truthgpt_serve.usage.counted import current_usage


class SentAnswer:
    """One answer. Made in the context of its request: it may be sent from another one.

    Args:
        send: ASGI `send`.

    Attributes:
        send: ASGI `send`.
        started: Whether its head has been sent.
        ended: Whether nothing of it may follow.
        events: Its events, if it is a stream of them.
    """

    __slots__ = ("_usage", "ended", "events", "send", "started")

    def __init__(self, send: Send) -> None:
        self.send = send
        self.started = self.ended = False
        self.events: WholeEvents | None = None
        self._usage = current_usage()

    async def pass_on(self, message: Message) -> None:
        """Sends what the application sends; of a stream of events only whole ones."""
        if message["type"] == "http.response.start":
            self.started = True
            if self._usage is not None:
                self._usage.status = message["status"]
            if is_event_stream(message.get("headers", ())):
                self.events = WholeEvents()
        elif message["type"] == "http.response.body":
            more = message.get("more_body", False)
            self.ended = not more
            if self.events is not None:
                data = message.get("body", b"")
                whole = self.events.feed(data)
                if not more:
                    whole += self.events.finish()
                elif not whole:
                    return
                if self._usage is not None and _has_error(whole):
                    self._usage.broke_off = True
                if whole is not data:
                    message = {**message, "body": whole}
        await self.send(message)


def _has_error(events: bytes) -> bool:
    """Returns whether a stream breaks off with these events, which its status does not say."""
    return b'"error"' in events and any(map(is_error_event, split_events(events)))
