"""One text's steps around `infer`: what the class gets, and its vector as JSON.

A vector may be a list of numbers, a numpy array or a torch tensor; neither library is imported
here.
"""

from __future__ import annotations

import base64
import math
import sys
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from truthgpt_serve.errors import ServerError, UnsupportedError
from truthgpt_serve.http.json_body import encode_json
from truthgpt_serve.server.text_limits import CHARACTERS_A_TOKEN
from truthgpt_serve.usage.counted import current_usage


@dataclass(frozen=True, slots=True)
class Vector:
    """A finished vector.

    Attributes:
        json: A JSON array of numbers, or a JSON string with base64.
        num_tokens: Tokens of the text as the class counted them, or None.
    """

    json: bytes
    num_tokens: int | None


class EmbeddingCodec:
    """One text of a request.

    Args:
        inputs: What the class gets.
        label: The class's name, for messages.
        base64_wanted: Whether the vector is wanted as base64.
        check: Raises ContextLengthError for a text that is too long.
    """

    takes_long = False
    __slots__ = ("_base64", "_check", "_inputs", "_label", "_used", "done")

    def __init__(
        self,
        inputs: Mapping[str, Any],
        label: str,
        *,
        base64_wanted: bool,
        check: Callable[[str], object] | None = None,
    ) -> None:
        self.done = False
        self._used = current_usage()
        self._check = check
        self._inputs = inputs
        self._label = label
        self._base64 = base64_wanted

    def inputs(self) -> dict[str, Any]:
        """Returns the inputs for the class, which may change them."""
        text = self._inputs.get("text")
        truncated = "truncate_prompt_tokens" in self._inputs
        if self._check is not None and text is not None and not truncated:
            self._check(text)
        return dict(self._inputs)

    def encode(self, outputs: Any) -> Vector:
        """Returns the vector as JSON.

        Raises:
            ServerError: The class gave something else.
            UnsupportedError: The class paid no heed to `dimensions`.
        """
        found = outputs.get("embedding") if isinstance(outputs, Mapping) else outputs
        values = self._values(found)
        wanted = self._inputs.get("dimensions")
        if wanted is not None and len(values) != wanted:
            raise UnsupportedError(
                f"`dimensions` is {wanted}, but this model's vectors have {len(values)} values; "
                "leave the field out",
                param="dimensions",
            )
        count = outputs.get("num_tokens") if isinstance(outputs, Mapping) else None
        num_tokens = count if type(count) is int and count >= 0 else None
        if self._used is not None:
            self._used.prompt_tokens += self._about() if num_tokens is None else num_tokens
        if not self._base64:
            return Vector(encode_json(values.tolist()), num_tokens)
        if sys.byteorder == "big":
            values.byteswap()
        return Vector(b'"' + base64.b64encode(values.tobytes()) + b'"', num_tokens)

    def _about(self) -> int:
        """Returns about how many tokens the text has, where the class does not say it."""
        return len(self._inputs.get("text") or "") // CHARACTERS_A_TOKEN

    def _values(self, found: Any) -> array[float]:
        """Returns the vector as float32."""
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(found, torch.Tensor):
            found = found.detach().float().cpu().numpy()
        numpy = sys.modules.get("numpy")
        try:
            if numpy is not None and isinstance(found, numpy.ndarray):
                if found.ndim != 1:
                    raise ValueError(f"its shape is {found.shape}")
                values = array("f", found.astype("float32").tobytes())
            elif isinstance(found, list | tuple):
                values = array("f", found)
            else:
                raise TypeError(f"it is a {type(found).__name__}")
        except (TypeError, ValueError, OverflowError) as error:
            raise ServerError(
                f"{self._label} returned no vector ({error}); an embedding model returns "
                "{'embedding': list of numbers}"
            ) from error
        if not values or not math.isfinite(math.fsum(values)):
            raise ServerError(f"{self._label} returned a vector that is empty or not finite")
        return values

    def encode_chunk(self, item: Any) -> Vector:
        """Returns the vector: there is no stream of parts."""
        return self.encode(item)

    def encode_end(self) -> None:
        """Returns None: nothing follows the vector."""
