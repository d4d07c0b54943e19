"""Images and arrays in JSON, both ways, for `/v1/infer`; imports neither numpy nor PIL by itself.

An image is `{"b64_json", "format"}`. An array is `{"shape", "dtype", "b64"}`: numpy's name of the
type and the elements in C order, little-endian. Both become objects only for a class that has
loaded the library already; for any other they stay as they came.
"""

from __future__ import annotations

import base64
import io
import math
import sys
from functools import partial
from typing import Any

import msgspec

from truthgpt_serve.errors import RequestError, ServerError, TooLargeError
from truthgpt_serve.http.json_body import encode_json
from truthgpt_serve.image_files.bounds import find_fault
from truthgpt_serve.wording import shown

IMAGE_KEYS = frozenset({"b64_json", "format"})
MAX_DEPTH = 200
"""Lists and objects in each other. The interpreter's own limit is no guard: compilers raise it."""
ARRAY_KEYS = frozenset({"shape", "dtype", "b64"})
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Formats that may come in: PIL hands some others, such as EPS, to outside programs."""
MAX_PIXELS = 89_478_485
"""Pixels of all images of a request together: as many as PIL takes for one image without a warning.
A file of few bytes can hold very many."""
MAX_DTYPE_CHARS = 32
"""Longest name of a type: numpy also reads lists of fields, for a second a hundred kilobytes."""
ARRAY_KINDS = "biufc"
"""numpy's kinds of types that travel: boolean, integer, unsigned, float, complex."""


class PixelBudget:
    """How many pixels the images of one request may still have."""

    def __init__(self) -> None:
        self._left = MAX_PIXELS

    def take(self, num_pixels: int, place: str) -> None:
        """Counts an image, before it is decoded. Raises TooLargeError for one too many."""
        self._left -= num_pixels
        if self._left < 0:
            raise _too_many_pixels(place)


def _too_many_pixels(place: str) -> TooLargeError:
    return TooLargeError(
        f"`{place}`: the images of a request have more than {MAX_PIXELS} pixels together",
        param=place,
        code="image_too_large",
    )


def encode_value(value: Any, label: str) -> bytes:
    """Returns `value` as JSON.

    Raises:
        ServerError: It holds something that has no JSON form, such as a NaN outside an array; the
            message names it and `label`.
    """
    try:
        return _encode(value)
    except (TypeError, ValueError, RuntimeError, OSError) as error:
        raise ServerError(f"{label} returned what JSON cannot represent: {error}") from error


def _encode(value: Any) -> bytes:
    try:
        encoded = msgspec.json.encode(value, enc_hook=_to_json)
        if b"null" not in encoded:  # msgspec writes this for NaN and infinity too
            return encoded
    except UnicodeEncodeError:
        encoded = b""
    plain = msgspec.to_builtins(value, enc_hook=_to_json, str_keys=True)
    _check_finite(plain)
    return encoded or encode_json(plain)


def _check_finite(value: Any) -> None:
    """Raises ValueError where a number in lists and objects is NaN or infinite."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, float) and not math.isfinite(item):
            raise ValueError(f"the number {item}, which only an array carries")
        if isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, list | tuple):
            stack.extend(item)


def _to_json(value: Any) -> Any:
    numpy, pil, torch = (sys.modules.get(name) for name in ("numpy", "PIL.Image", "torch"))
    if torch is not None and isinstance(value, torch.Tensor):
        tensor = value.detach().cpu().resolve_conj().resolve_neg()
        return _array((tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy())
    if numpy is not None and isinstance(value, numpy.ndarray):
        return _array(value)
    if numpy is not None and isinstance(value, numpy.generic):
        plain = value.item()
        if not isinstance(plain, numpy.generic):  # as a `longdouble` stays, for ever
            return plain
    if pil is not None and isinstance(value, pil.Image):
        return _image(value)
    raise NotImplementedError(f"a {type(value).__module__}.{type(value).__qualname__}")


def _array(array: Any) -> dict[str, Any]:
    if array.dtype.kind not in ARRAY_KINDS:
        raise NotImplementedError(f"an array of dtype {array.dtype}")
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return {
        "shape": list(array.shape),
        "dtype": array.dtype.name,
        "b64": base64.b64encode(little.tobytes()).decode(),
    }


def _image(image: Any) -> dict[str, str]:
    form = "PNG"
    buffer = io.BytesIO()
    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"):
        image = image.convert("RGB")
    image.save(buffer, form)
    return {"b64_json": base64.b64encode(buffer.getvalue()).decode(), "format": form.lower()}


def decode_value(
    value: Any, place: str = "inputs", depth: int = 0, budget: PixelBudget | None = None
) -> Any:
    """Returns `value` with its arrays and images made into objects.

    Args:
        value: Of the request.
        place: Where it stands there.
        depth: In how many lists and objects.
        budget: How many pixels its images may have, by default `MAX_PIXELS`.

    Raises:
        RequestError: One of them is damaged; `param` names its place.
        TooLargeError: The images have too many pixels.
        RecursionError: It is nested deeper than `MAX_DEPTH`.
    """
    budget = budget or PixelBudget()
    if depth > MAX_DEPTH:
        raise RecursionError
    depth += 1
    if isinstance(value, list):
        return [
            decode_value(item, f"{place}[{index}]", depth, budget)
            for index, item in enumerate(value)
        ]
    if not isinstance(value, dict):
        return value
    if value.keys() == ARRAY_KEYS and "numpy" in sys.modules:
        return _read(_read_array, value, place)
    if value.keys() == IMAGE_KEYS and "PIL.Image" in sys.modules:
        return _read(partial(_read_image, budget=budget, place=place), value, place)
    return {key: decode_value(item, f"{place}.{key}", depth, budget) for key, item in value.items()}


def _read(reader: Any, value: dict[str, Any], place: str) -> Any:
    try:
        return reader(value)
    except TooLargeError:
        raise
    except Exception as error:  # both libraries raise many kinds for damaged data
        raise RequestError(f"`{place}` cannot be read: {error}", param=place) from error


def _read_array(value: dict[str, Any]) -> Any:
    numpy = sys.modules["numpy"]
    name = value["dtype"]
    if not isinstance(name, str) or len(name) > MAX_DTYPE_CHARS:
        raise ValueError(f"dtype {shown(name)} is not the name of a type")
    dtype = numpy.dtype(name)
    if dtype.kind not in ARRAY_KINDS:
        raise ValueError(f"dtype {name!r} is not supported")
    data = base64.b64decode(value["b64"], validate=True)
    return numpy.frombuffer(data, dtype.newbyteorder("<")).reshape(value["shape"]).astype(dtype)


def _read_image(value: dict[str, Any], budget: PixelBudget, place: str) -> Any:
    form = str(value["format"]).upper()
    if form not in IMAGE_FORMATS:
        raise ValueError(f"the format is one of {', '.join(IMAGE_FORMATS).lower()}")
    data = base64.b64decode(value["b64_json"], validate=True)
    if (fault := find_fault(data)) is not None:
        raise ValueError(f"it {fault}")
    pil = sys.modules["PIL.Image"]
    try:
        image = pil.open(io.BytesIO(data), formats=[form])
    except (pil.DecompressionBombError, pil.DecompressionBombWarning):
        raise _too_many_pixels(place) from None
    except pil.UnidentifiedImageError:
        raise ValueError(f"it is not a {form} image; `format` must be the file's own") from None
    budget.take(image.width * image.height, place)
    image.load()
    return image
