"""Has parts of messages bring in no media but those of the request's own, or of its key's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PIL import Image
from vllm.exceptions import VLLMValidationError
from vllm.renderers.chat_utils import (
    AsyncMultiModalContentParser,
    AsyncMultiModalItemTracker,
    MultiModalContentParser,
    MultiModalItemTracker,
)

from deployments.vllm.patches.methods import replace_method
from truthgpt_serve.usage.counted import current_usage

_SEPARATOR = "\0"
"""Between the key's name, which cannot have it, and the name that its client gave."""


def mend_media_parts() -> None:
    """Replaces what vLLM does with `image_pil` and `uuid` in the parts of messages.

    `image_pil` is for programs that hand over an image in memory. A text in its place goes past
    the connector to transformers, which fetches it from any address or file.

    `uuid` names a medium, and stands for it in later requests, and beside other content in the
    place of that. So a name of one key's must not be found by the requests of another.

    Raises:
        RuntimeError: vLLM moved a method.
    """
    for parser in (MultiModalContentParser, AsyncMultiModalContentParser):
        replace_method(parser, "parse_image_pil", ["image_pil", "uuid"], _of_images)
    for tracker in (MultiModalItemTracker, AsyncMultiModalItemTracker):
        wrap = _of_keys_async if tracker is AsyncMultiModalItemTracker else _of_keys
        replace_method(tracker, "resolve_items", [], wrap)


def _of_images(parse: Callable[..., None]) -> Callable[..., None]:
    def parse_image_pil(self: Any, image_pil: Any, uuid: str | None = None) -> None:
        if image_pil is not None and not isinstance(image_pil, Image.Image):
            raise VLLMValidationError(
                "`image_pil` is not supported in a request: send the image as `image_url`",
                parameter="image_pil",
            )
        parse(self, image_pil, uuid)

    return parse_image_pil


def _of_keys(resolve: Callable[..., Any]) -> Callable[..., Any]:
    def resolve_items(self: Any) -> Any:
        return _renamed(resolve(self))

    return resolve_items


def _of_keys_async(resolve: Callable[..., Any]) -> Callable[..., Any]:
    async def resolve_items(self: Any) -> Any:
        return _renamed(await resolve(self))

    return resolve_items


def _renamed(resolved: tuple[Any, Any]) -> tuple[Any, Any]:
    """Returns media and their names by modality, the names as those of the request's key."""
    media, names = resolved
    _check_given(media, names)
    usage = current_usage()
    if usage is None or not usage.key or not names:
        return media, names
    start = f"{usage.key}{_SEPARATOR}"
    return media, {
        modality: [None if name is None else f"{start}{name}" for name in each]
        for modality, each in names.items()
    }


def _check_given(media: Any, names: Any) -> None:
    """Raises VLLMValidationError for a medium that has neither content nor a name."""
    for modality, items in (media or {}).items():
        named = (names or {}).get(modality) or [None] * len(items)
        if any(item is None and name is None for item, name in zip(items, named, strict=False)):
            field = f"{modality}_url" if modality in ("audio", "image", "video") else modality
            raise VLLMValidationError(f"`{field}`: is empty", parameter=field)
