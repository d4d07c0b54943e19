"""OpenAI's speech routes for any class that says it can: `transcription`, `translation`.

A class says what it can by its attribute `operations`. `request` reads fields and files, `codec`
calls the class, `response` writes the answer. The class gets `audio`, a float32 numpy array
`[samples]`, and `sampling_rate`; optionally `language`, `prompt`, `temperature`, `timestamps`
(`segment`, `word` or a list of both), `detect_language` and `task` (`translate`). It gives `text`,
and where it was asked `segments` and `words` with `start` and `end` in seconds; what else its
segments have passes.

A new route also needs a line in `server/application.py` (`_routes`), which sends requests here, and
in `http/routes.py`, the list of all routes; its description in `router/openapi/audio.yaml`; and for
vLLM models an entry in `deployments/vllm/application/routes.py`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from truthgpt_serve.errors import RequestError, UnsupportedError
from truthgpt_serve.http.connection import Connection
from truthgpt_serve.http.multipart import form_boundary, parse_form
from truthgpt_serve.server.audio.codec import AudioCodec
from truthgpt_serve.server.audio.decode import bounds_of, decode_audio
from truthgpt_serve.server.audio.request import AudioRequest, parse_audio
from truthgpt_serve.server.execution.threads import BoundedExecutor
from truthgpt_serve.server.instance import ModelInstance
from truthgpt_serve.server.request_reader import RequestReader

PATH = "/v1/audio/transcriptions"
TRANSLATIONS_PATH = "/v1/audio/translations"


class AudioRoutes:
    """Answers transcription requests with one model.

    Args:
        instance: The model; started before the first request.
        reader: Reads its requests.
    """

    def __init__(self, instance: ModelInstance, reader: RequestReader) -> None:
        self._instance = instance
        self._reader = reader
        self._executor = BoundedExecutor("recordings")

    def close(self) -> None:
        """Ends the threads."""
        self._executor.close()

    async def transcribe(self, connection: Connection) -> None:
        """Answers `POST /v1/audio/transcriptions`."""
        await self._answer(connection, "transcribe", "transcription")

    async def translate(self, connection: Connection) -> None:
        """Answers `POST /v1/audio/translations`."""
        await self._answer(connection, "translate", "translation")

    async def _answer(self, connection: Connection, task: str, operation: str) -> None:
        body = await self._reader.read(connection)
        instance = self._instance
        if operation not in getattr(instance.model, "operations", ()):
            raise UnsupportedError(
                f"the model {instance.name!r} does not {task} recordings", param="model"
            )
        boundary = form_boundary(connection.header(b"content-type"))
        parts = await self._executor.run(lambda: parse_form(boundary, body))
        request = parse_audio(parts, task)
        self._reader.own_name(request.model)
        async with connection.guard(instance.max_request_s) as guard:
            codec = await self._codec(request)
            try:
                if request.stream:
                    await instance.stream(codec, connection.emit)
                    guard.release()
                    await connection.end_events()
                    return
                answer, content_type = await instance.run(codec)
            except RequestError as error:
                _name_in_form(error)
                raise
            guard.release()
            await connection.reply(answer, content_type)

    async def _codec(self, request: AudioRequest) -> AudioCodec:
        rate, max_s = bounds_of(self._instance.model)
        samples: Any = await self._executor.run(partial(decode_audio, request.file, rate, max_s))
        request.file = b""  # the samples are what is needed from here on
        inputs = {"audio": samples, "sampling_rate": rate, **request.inputs}
        return AudioCodec(request, inputs, len(samples) / rate, self._instance.label)


def _name_in_form(error: RequestError) -> None:
    """Has an error of the class name the form's field instead of its input."""
    name = error.param and error.param.removeprefix("inputs.")
    if name == "audio":
        error.message = error.message.replace("`audio`", "`file`", 1)
        name = "file"
    error.param = name
