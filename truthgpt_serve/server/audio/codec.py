"""One recording's steps around `infer` and `stream`: the class's inputs, its checked outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from truthgpt_serve.errors import ServerError, UnsupportedError
from truthgpt_serve.server.audio.request import AudioRequest
from truthgpt_serve.server.audio.response import (
    compression_ratio,
    encode_delta,
    encode_done,
    encode_transcription,
)
from truthgpt_serve.usage.counted import add_audio

KEYS = {"segment": ("segments", "text"), "word": ("words", "word")}


class AudioCodec:
    """One transcription or translation.

    Args:
        request: The checked request.
        inputs: What the class gets.
        duration: The recording's length in seconds.
        label: The class's name, for messages.
    """

    takes_long = False

    def __init__(
        self, request: AudioRequest, inputs: Mapping[str, Any], duration: float, label: str
    ) -> None:
        self.done = False
        self._request = request
        self._inputs = inputs
        self._duration = duration
        self._label = label
        self._texts: list[str] = []
        add_audio(duration)

    def inputs(self) -> dict[str, Any]:
        """Returns the inputs for the class, which may change them."""
        return dict(self._inputs)

    def encode(self, outputs: Any) -> tuple[bytes, str]:
        """Returns the body of the whole answer and its content type.

        Raises:
            ServerError: The class gave something else.
            UnsupportedError: The class gave no times.
        """
        found = {"duration": self._duration, **self._checked(outputs, "infer")}
        wanted = self._inputs.get("timestamps") or []
        for kind in wanted if isinstance(wanted, list) else [wanted]:
            name, key = KEYS[kind]
            if name not in found:
                raise UnsupportedError(
                    f"this model gives no times of {name}: use `response_format` json or text",
                    param="response_format",
                )
            found[name] = [self._timed(item, name, key) for item in found[name]]
        temperature = self._inputs.get("temperature", 0.0)
        for segment in found.get("segments") or []:
            # These two are known here; what only the class knows is left out if it does not say it.
            segment.setdefault("temperature", temperature)
            segment.setdefault("compression_ratio", compression_ratio(segment["text"]))
        return encode_transcription(self._request.response_format, found, task=self._request.task)

    def encode_chunk(self, item: Any) -> bytes | None:
        """Returns the event of one item of `stream`."""
        text = str(self._checked(item, "stream")["text"])
        if not text:
            return None
        self._texts.append(text)
        return encode_delta(text)

    def encode_end(self) -> bytes:
        """Returns the last event."""
        return encode_done("".join(self._texts))

    def _checked(self, item: Any, method: str) -> Mapping[str, Any]:
        if isinstance(item, Mapping) and isinstance(item.get("text"), str):
            return item
        verb = "yielded" if method == "stream" else "returned"
        raise ServerError(
            f"{self._label}.{method} {verb} a {type(item).__name__} without a 'text' of type str"
        )

    def _timed(self, item: Any, name: str, key: str) -> dict[str, Any]:
        if not isinstance(item, Mapping) or not all(
            isinstance(item.get(time), int | float) for time in ("start", "end")
        ):
            raise ServerError(
                f"{self._label}.infer gave {name} without numbers for start and end, in seconds"
            )
        return {**item, key: str(item.get(key, ""))}
