"""Images and arrays in JSON, both ways, for `/v1/infer`; imports neither numpy nor PIL by itself.

An image is `{"b64_json", "format"}`. An array is `{"shape", "dtype", "b64"}`: numpy's name of the
type and the elements in C order, little-endian. Both become objects only for a class that has
loaded the library already; for any other they stay as they came.
"""

from __future__ import annotations

import base64
import io
import sys
from typing import Any

import msgspec

from truthgpt_serve.errors import RequestError, ServerError
from truthgpt_serve.http.json_body import encode_json

IMAGE_KEYS = frozenset({"b64_json", "format"})
MAX_DEPTH = 200
"""Lists and objects in each other. The interpreter's own limit is no guard: compilers raise it."""
ARRAY_KEYS = frozenset({"shape", "dtype", "b64"})
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Formats that may come in: PIL hands some others, such as EPS, to outside programs."""
ARRAY_KINDS = "biufc"
"""numpy's kinds of types that travel: boolean, integer, unsigned, float, complex."""


def encode_value(value: Any, label: str) -> bytes:
    """Returns `value` as JSON.

    Raises:
        ServerError: It holds something that has no JSON form; the message names it and `label`.
    """
    try:
        return msgspec.json.encode(value, enc_hook=_to_json)
    except UnicodeEncodeError:
        return encode_json(msgspec.to_builtins(value, enc_hook=_to_json, str_keys=True))
    except (TypeError, ValueError, NotImplementedError, RecursionError) as error:
        raise ServerError(f"{label} returned what JSON cannot represent: {error}") from error


def _to_json(value: Any) -> Any:
    numpy, pil, torch = (sys.modules.get(name) for name in ("numpy", "PIL.Image", "torch"))
    if torch is not None and isinstance(value, torch.Tensor):
        tensor = value.detach().cpu()
        return _array((tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy())
    if numpy is not None and isinstance(value, numpy.ndarray):
        return _array(value)
    if numpy is not None and isinstance(value, numpy.generic):
        return value.item()
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


def decode_value(value: Any, place: str = "inputs", depth: int = 0) -> Any:
    """Returns `value` with its arrays and images made into objects.

    Raises:
        RequestError: One of them is damaged; `param` names its place.
        RecursionError: It is nested deeper than `MAX_DEPTH`.
    """
    if depth > MAX_DEPTH:
        raise RecursionError
    depth += 1
    if isinstance(value, list):
        return [decode_value(item, f"{place}[{index}]", depth) for index, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    if value.keys() == ARRAY_KEYS and "numpy" in sys.modules:
        return _read(_read_array, value, place)
    if value.keys() == IMAGE_KEYS and "PIL.Image" in sys.modules:
        return _read(_read_image, value, place)
    return {key: decode_value(item, f"{place}.{key}", depth) for key, item in value.items()}


def _read(reader: Any, value: dict[str, Any], place: str) -> Any:
    try:
        return reader(value)
    except Exception as error:  # both libraries raise many kinds for damaged data
        raise RequestError(f"`{place}` cannot be read: {error}", param=place) from error


def _read_array(value: dict[str, Any]) -> Any:
    numpy = sys.modules["numpy"]
    dtype = numpy.dtype(value["dtype"])
    if dtype.kind not in ARRAY_KINDS:
        raise ValueError(f"dtype {value['dtype']!r} is not supported")
    data = base64.b64decode(value["b64"], validate=True)
    return numpy.frombuffer(data, dtype.newbyteorder("<")).reshape(value["shape"]).astype(dtype)


def _read_image(value: dict[str, Any]) -> Any:
    form = str(value["format"]).upper()
    if form not in IMAGE_FORMATS:
        raise ValueError(f"the format is one of {', '.join(IMAGE_FORMATS).lower()}")
    data = base64.b64decode(value["b64_json"], validate=True)
    image = sys.modules["PIL.Image"].open(io.BytesIO(data), formats=[form])
    image.load()
    return image
