"""OpenAI's transcription requests, which are forms."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from truthgpt_serve.errors import UnsupportedError
from truthgpt_serve.http.multipart import Part
from truthgpt_serve.request_schema import (
    FullText,
    RequestModel,
    Wanted,
    bad_field,
    read_request,
    unsupported_unless,
)
from truthgpt_serve.server.forms import read_form

Format = Literal["json", "text", "srt", "verbose_json", "vtt"]
Granularity = Literal["segment", "word"]
TIMED = ("srt", "verbose_json", "vtt")
MAX_LANGUAGE_CHARS = 64


class AudioRequest(RequestModel):
    """A request for a transcription, or for a translation into English."""

    model: FullText
    file: bytes
    task: Literal["transcribe", "translate"]
    response_format: Format = "json"
    stream: bool = False
    include: Annotated[
        list[str], unsupported_unless(lambda value: not value, "has no log probabilities")
    ] = Field(default_factory=list)
    language: Annotated[str, Field(max_length=MAX_LANGUAGE_CHARS)] = ""
    prompt: str = ""
    temperature: Annotated[float, Field(ge=0, le=1)] = 0
    timestamp_granularities: Annotated[list[Granularity], Wanted("a list of segment or word")] = (
        Field(default_factory=list)
    )

    @property
    def inputs(self) -> dict[str, Any]:
        """What the class gets beside the recording."""
        inputs: dict[str, Any] = {"task": "translate"} if self.task == "translate" else {}
        for name in ("language", "prompt", "temperature"):
            if value := getattr(self, name):
                inputs[name] = value
        kinds = sorted(set(self.timestamp_granularities))
        if kinds:
            inputs["timestamps"] = kinds if len(kinds) > 1 else kinds[0]
        elif self.response_format in TIMED:
            inputs["timestamps"] = "segment"
        if self.response_format == "verbose_json":
            inputs["detect_language"] = True
        return inputs


def parse_audio(parts: list[Part], task: str) -> AudioRequest:
    """Checks a form of `POST /v1/audio/transcriptions` or `POST /v1/audio/translations`.

    Args:
        parts: The form.
        task: `transcribe` or `translate`.

    Raises:
        RequestError: A field is missing or wrong; `param` names it.
        UnsupportedError: A field asks for what the generic application does not have.
    """
    values, files = read_form(parts, AudioRequest, ("file",))
    if not files.get("file"):
        raise bad_field("file", "is required")
    if len(files["file"]) > 1:
        raise bad_field("file", "is given more than once")
    request = read_request(AudioRequest, {**values, "file": files["file"][0], "task": task})
    if request.stream and request.response_format not in ("json", "text"):
        message = (
            f"`response_format` {request.response_format} cannot be streamed; use json or text"
        )
        raise UnsupportedError(message, param="response_format")
    if request.stream and task == "translate":
        raise UnsupportedError("`stream`: a translation comes whole; leave it out", param="stream")
    if request.timestamp_granularities and request.response_format != "verbose_json":
        raise bad_field("timestamp_granularities", "needs `response_format` verbose_json")
    return request
