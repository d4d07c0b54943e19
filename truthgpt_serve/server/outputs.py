"""What a class may return for each task, checked without a request, as the routes check it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from truthgpt_serve.server.embeddings.codec import EmbeddingCodec
from truthgpt_serve.server.images.codec import ImageCodec
from truthgpt_serve.server.text.items import check_item


class OutputCheck:
    """Checks what one call of a class gives, for one who calls it without the service.

    Args:
        task: The model's; `custom` may return whatever JSON can represent.
        inputs: What the class was given.
        label: The class's name, for messages.
    """

    def __init__(self, task: str, inputs: Mapping[str, Any], label: str) -> None:
        self._task = task
        self._inputs = inputs
        self._label = label
        self._image = ImageCodec(inputs, label)

    def answer(self, outputs: Any) -> None:
        """Checks what `infer` returned.

        Raises:
            ServerError: The service would refuse it.
            UnsupportedError: The class paid no heed to an input.
        """
        if self._task == "text-generation":
            check_item(outputs, self._label, "infer")
        elif self._task == "image-generation":
            self._image.encode(outputs)
        elif self._task == "embedding":
            EmbeddingCodec(self._inputs, self._label, base64_wanted=False).encode(outputs)
        elif self._task == "tensor":
            from truthgpt_serve.server.tensors.response import to_arrays  # needs numpy

            to_arrays(outputs, f"{self._label}.infer")

    def piece(self, item: Any) -> None:
        """Checks one item of `stream`; errors are those of `answer`."""
        if self._task == "text-generation":
            check_item(item, self._label, "stream")
        elif self._task == "image-generation":
            self._image.encode_chunk(item)
        else:
            self.answer(item)

    def finish(self) -> None:
        """Checks that a stream brought what it is for; errors are those of `answer`."""
        if self._task == "image-generation":
            self._image.encode_end()
