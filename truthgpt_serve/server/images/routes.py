"""OpenAI's image routes for any class whose task is image-generation.

`request` reads fields and files, `codec` calls the class, `response` writes the answer.

A new route also needs a line in `server/application.py` (`_routes`), which sends requests here, and
in `http/routes.py`, the list of all routes; and its description in `router/openapi/images.yaml`.
"""

from __future__ import annotations

import asyncio
import secrets
from functools import partial
from typing import Any

from truthgpt_serve.body_limits import body_too_large
from truthgpt_serve.errors import TooLargeError, UnsupportedError
from truthgpt_serve.http.connection import Connection
from truthgpt_serve.http.file_store import FILES_PATH, fetch_file
from truthgpt_serve.http.json_body import parse_object
from truthgpt_serve.http.multipart import FORM_TYPE, form_boundary, parse_form
from truthgpt_serve.request_fields import MAX_SEED
from truthgpt_serve.server.execution.gather import CallSlots, gather
from truthgpt_serve.server.execution.threads import BoundedExecutor
from truthgpt_serve.server.images.codec import (
    ImageCodec,
    ImageResult,
    PartialImage,
    Progress,
    expected_work,
)
from truthgpt_serve.server.images.files import (
    EncodedImage,
    decode_image,
    decode_mask,
    encode_image,
    load_pil,
)
from truthgpt_serve.server.images.public_url import public_url
from truthgpt_serve.server.images.request import ImageParser, ImageRequest, Operation
from truthgpt_serve.server.images.response import (
    Image,
    encode_completed,
    encode_partial,
    encode_progress,
    encode_response,
)
from truthgpt_serve.server.instance import ModelInstance
from truthgpt_serve.server.request_reader import RequestReader
from truthgpt_serve.usage.counted import reserve_images

DEFAULT_STEPS = 30
"""`steps` when neither the request nor the class (`default_steps`) says one."""
MAX_TOTAL = 4
"""All images of one request may have this many times the pixels of one."""


class ImageRoutes:
    """Answers image requests with one model.

    Args:
        instance: The model; started before the first request.
        reader: Reads its requests.
    """

    def __init__(self, instance: ModelInstance, reader: RequestReader) -> None:
        self._instance = instance
        self._reader = reader
        self._files = instance.files
        serving = instance.config.serving
        self._limits = serving.images
        self._adapters = [adapter.name for adapter in serving.adapters]
        known = self._adapters if instance.spec.takes_adapters else None
        self._parser = ImageParser(self._limits, known)
        self._executor = BoundedExecutor("image files")
        self._has_pil = False
        self._slots = CallSlots(lambda: instance.max_ongoing)

    def close(self) -> None:
        """Ends the threads."""
        self._executor.close()

    async def generate(self, connection: Connection) -> None:
        """Answers `POST /v1/images/generations`."""
        body = await self._read(connection)
        self._check_operation("generation")
        if connection.header(b"content-type").lower().startswith(FORM_TYPE):
            raise UnsupportedError(
                "this route takes JSON, not a form; /v1/images/edits takes a form with images"
            )
        await self._answer(connection, self._parser.parse_json(parse_object(body)))

    async def edit(self, connection: Connection) -> None:
        """Answers `POST /v1/images/edits`."""
        await self._form(connection, "edit")

    async def vary(self, connection: Connection) -> None:
        """Answers `POST /v1/images/variations`."""
        await self._form(connection, "variation")

    async def file(self, connection: Connection, file_id: str) -> None:
        """Answers `GET /v1/files/images/{id}`."""
        file = await fetch_file(self._files, file_id)
        await connection.reply(file.data, file.content_type, headers=file.headers())

    async def _read(self, connection: Connection) -> bytes:
        most = self._reader.bounds.max_body_bytes
        limit = min(most, self._limits.max_upload_bytes)
        try:
            return await connection.read(limit, self._instance.max_request_s)
        except TooLargeError:
            if limit == most:
                raise
            raise body_too_large(limit, "`serving.images.max_upload_bytes`") from None

    async def _form(self, connection: Connection, operation: Operation) -> None:
        body = await self._read(connection)
        self._check_operation(operation)
        boundary = form_boundary(connection.header(b"content-type"))
        parts = await self._executor.run(lambda: parse_form(boundary, body))
        await self._answer(connection, self._parser.parse_form(operation, parts))

    def _check_operation(self, operation: Operation) -> None:
        instance = self._instance
        instance.check_task("image-generation", "image routes")
        operations = getattr(instance.model, "operations", ("generation",))
        if operation not in operations:
            raise UnsupportedError(
                f"the model {instance.name!r} cannot do image {operation}s; it can do "
                f"{', '.join(f'image {name}s' for name in operations)}",
                param="model",
            )

    def _check_model(self, request: ImageRequest) -> None:
        if request.fields.model in self._adapters:
            # An adapter is a model name of its own; others of the request come on top.
            weights = {request.fields.model: 1.0, **request.inputs.get("adapters", {})}
            request.inputs["adapters"] = weights
        else:
            self._reader.own_name(request.fields.model)

    # -- one request

    async def _answer(self, connection: Connection, request: ImageRequest) -> None:
        self._check_model(request)
        async with connection.guard(self._instance.max_request_s) as guard:
            await self._decode(request)
            self._complete(request)
            steps, num_pixels = expected_work(self._instance.model, request.inputs)
            codecs = self._codecs(request, num_pixels)
            work = request.fields.n * steps * num_pixels / 1e6
            await reserve_images(work)
            with self._instance.work.taking(work):
                if request.fields.stream:
                    await self._stream(connection, request, codecs)
                    guard.release()
                    await connection.end_events()
                    return
                images = await gather(
                    [self._image(request, codec, i) for i, codec in enumerate(codecs)]
                )
            urls = (
                await self._store(connection, request, images)
                if request.fields.response_format == "url"
                else []
            )
            body = await self._executor.run(lambda: encode_response(request, images, urls))
            guard.release()
            await connection.reply(body)

    async def _decode(self, request: ImageRequest) -> None:
        """Puts the uploaded images into the inputs."""
        uploads, limit = request.images, self._limits.max_pixels
        if not self._has_pil:  # its absence is found before the model works
            await self._executor.run(load_pil)
            self._has_pil = True
        if not uploads:
            return
        images: list[Any] = []
        num_pixels = 0
        for index, data in enumerate(uploads):
            place = "image" if len(uploads) == 1 else f"image[{index}]"
            image = await self._executor.run(partial(decode_image, data, place, limit))
            num_pixels += image.width * image.height
            if num_pixels > MAX_TOTAL * limit:
                raise TooLargeError(
                    f"the first {index + 1} images have {num_pixels} pixels together, more than "
                    f"the {MAX_TOTAL * limit} that one request may have",
                    param="image",
                    code="image_too_large",
                )
            images.append(image)
        request.inputs["image"] = images[0] if len(images) == 1 else images
        if request.mask is not None:
            request.inputs["mask"] = await self._executor.run(
                partial(decode_mask, request.mask, "mask", limit, images[0].size)
            )
        request.images, request.mask = [], None

    def _complete(self, request: ImageRequest) -> None:
        """Puts the steps into the inputs, unless the class chooses them."""
        steps = getattr(self._instance.model, "default_steps", DEFAULT_STEPS)
        if steps is not None:
            request.inputs.setdefault("steps", steps)

    def _codecs(self, request: ImageRequest, num_pixels: int) -> list[ImageCodec]:
        """Returns the codec of each image: the same inputs, but for the seed."""
        model, inputs = self._instance.model, request.inputs
        seed = request.fields.seed
        if seed is None and getattr(model, "accepts_seed", False):
            seed = secrets.randbelow(MAX_SEED - request.fields.n)
        return [
            ImageCodec(
                inputs if seed is None else {**inputs, "seed": seed + index},
                self._instance.label,
                partial_images=request.fields.partial_images,
                progress=request.fields.progress,
                shared=request.fields.n > 1,
                num_pixels=num_pixels,
            )
            for index in range(request.fields.n)
        ]

    async def _image(self, request: ImageRequest, codec: ImageCodec, index: int) -> Image:
        result = await self._slots.run(index, lambda: self._instance.run(codec))
        return Image(await self._encode(request, result.image, "infer"), result)

    async def _encode(self, request: ImageRequest, image: Any, method: str) -> EncodedImage:
        label = f"{self._instance.label}.{method}"
        return await self._executor.run(lambda: encode_image(image, request.output, label))

    async def _store(
        self, connection: Connection, request: ImageRequest, images: list[Image]
    ) -> list[str]:
        """Returns the addresses of the images, which are stored only now that all are there."""
        ids = [
            await self._files.put(
                image.file.data,
                request.output.content_type,
                group=self._instance.name,
                expiry_s=self._limits.url_expiry_s,
                max_bytes=self._limits.max_stored_bytes,
            )
            for image in images
        ]
        return [public_url(connection.scope, FILES_PATH + file_id) for file_id in ids]

    # -- streams

    async def _stream(
        self, connection: Connection, request: ImageRequest, codecs: list[ImageCodec]
    ) -> None:
        writing = asyncio.Lock()  # images of one request share the connection

        async def emit(index: int, piece: Progress | PartialImage | ImageResult) -> None:
            event = await self._event(request, piece, index)
            async with writing:
                await connection.emit(event)

        await gather(
            [
                self._slots.run(index, partial(self._instance.stream, codec, partial(emit, index)))
                for index, codec in enumerate(codecs)
            ]
        )

    async def _event(
        self, request: ImageRequest, piece: Progress | PartialImage | ImageResult, index: int
    ) -> bytes:
        if isinstance(piece, Progress):
            return encode_progress(request, piece, index)
        method = "stream" if self._instance.streams else "infer"
        file = await self._encode(request, piece.image, method)
        if isinstance(piece, PartialImage):
            return await self._executor.run(lambda: encode_partial(request, file, piece, index))
        image = Image(file, piece)
        return await self._executor.run(lambda: encode_completed(request, image, index))
