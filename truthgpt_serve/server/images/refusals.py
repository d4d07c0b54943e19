"""What image requests may not say, and what they probably meant.

Knows names, of OpenAI's fields and of other servers'; no kinds of values and no limits.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from truthgpt_serve.errors import RequestError, UnsupportedError
from truthgpt_serve.http.json_body import shown

_WORDS = {
    "background": ("transparent", "makes opaque images"),
    "input_fidelity": ("high", "has no fidelity setting; lower `strength` to change less"),
}
"""Values of OpenAI's that only its own models honour, and why not."""

_FIELDS = {
    "complexity": "has no planning",
    "frame_count": "makes no animations",
    "frame_duration_ms": "makes no animations",
    "markup": "takes no markup; paint on the image itself",
    "svg": "makes no SVG",
}
"""Fields of OpenAI's that only its own models honour, and why not."""

_MEANT = {
    "width": "size",
    "height": "size",
    "num_inference_steps": "steps",
    "num_steps": "steps",
    "num_images": "n",
    "num_images_per_prompt": "n",
    "cfg_scale": "guidance_scale",
    "sampler": "scheduler",
    "lora": "adapters",
    "loras": "adapters",
    "format": "output_format",
    "image_url": "image",
    "images": "image",
    "denoising_strength": "strength",
}
"""Names that other servers have for fields."""

_OF_EDITS = ("image", "mask", "strength", "control_scale", "input_fidelity")
MAX_NAME_CHARS = 80


def refuse_words(values: Mapping[str, Any]) -> None:
    """Raises UnsupportedError for a value that only OpenAI's models honour."""
    for name, (word, reason) in _WORDS.items():
        if values.get(name) == word:
            raise _unsupported(name, shown(word), reason)


def refuse_file(name: str) -> None:
    """Raises UnsupportedError for a file that only OpenAI's models take."""
    if name in _FIELDS:
        raise _unsupported(name, "a file", _FIELDS[name])


def refuse_field(name: str, value: Any, route: str, names: Collection[str]) -> None:
    """Refuses a field that a route does not have, unless it asks for nothing.

    Args:
        name: The field.
        value: Its value.
        route: The route's path.
        names: The fields that it has.

    Raises:
        UnsupportedError: It is a field of OpenAI's.
        RequestError: Nobody knows it; the message names the nearest, or all that there are.
    """
    if name in _FIELDS:
        if value is None:
            return
        raise _unsupported(name, shown(value), _FIELDS[name])
    near = [_MEANT[name]] if _MEANT.get(name) in names else []
    near = near or difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        hint = f"; did you mean `{near[0]}`?"
    elif name in _OF_EDITS and "image" not in names:
        hint = "; it makes images from text alone, /v1/images/edits changes an image"
    else:
        hint = f"; its fields: {', '.join(names)}"
    place = name[:MAX_NAME_CHARS]
    raise RequestError(
        f"`{place}` is no field of {route}{hint}", param=place, code="unknown_parameter"
    )


def _unsupported(name: str, value: str, reason: str) -> UnsupportedError:
    return UnsupportedError(
        f"`{name}` is {value}, but this model {reason}; leave the field out", param=name
    )
