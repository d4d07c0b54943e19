"""The base of every request body's pydantic model, the kinds of its fields, and its errors.

The field `model`, by which the router finds a model, is `router/bodies/model_field.py`.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from truthgpt_serve.errors import RequestError, UnsupportedError
from truthgpt_serve.json_decoding import decode_json
from truthgpt_serve.wording import nearest, shown, unknown_field, words_of

_MAX_EXACT = 2**53
"""Up to this, every whole number is a float of its own."""
_WHOLE = re.compile(r"[-+]?\d{1,30}")
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


class RequestModel(BaseModel):
    """A request's body: no value is converted silently, and null stands for a missing field."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, protected_namespaces=())


ModelT = TypeVar("ModelT", bound=RequestModel)


def read_request(model: type[ModelT], data: Any) -> ModelT:
    """Checks a decoded body.

    Raises:
        RequestError: A field is missing or wrong; `param` names the first one.
        UnsupportedError: A field asks for what this server does not have.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        param = _place(detail["loc"])
        kind = UnsupportedError if detail["type"] == "unsupported" else RequestError
        raise kind(f"`{param}` {words_of(detail)}", param=param) from None


def _place(location: tuple[int | str, ...]) -> str:
    """Returns `messages[0].role` of a location, without the tags of unions: `<text>`."""
    place = ""
    for key in location:
        if isinstance(key, int):
            place += f"[{key}]"
        elif key[:1] != "<":
            place += f".{key[:128]}" if place else key
    return place


def bad_field(param: str, message: str) -> RequestError:
    """Returns the error that names one field, ready to raise."""
    return RequestError(f"`{param}` {message}", param=param)


def check_at_most(param: str, value: float | None, limit: float) -> None:
    """Checks a number against a limit that is known only to one model. Raises RequestError."""
    if value is not None and value > limit:
        raise bad_field(param, f"must be at most {limit:.12g}, not {shown(value)}")


def refuse_unknown(
    names: Collection[str], fields: Collection[str], meant: Mapping[str, str] | None = None
) -> None:
    """Refuses the first of `names` that is none of `fields`.

    Args:
        names: The names in a request.
        fields: The fields that there are.
        meant: What names of other servers' fields stand for.

    Raises:
        RequestError: The message names the nearest field, or all of them.
    """
    name = next((name for name in names if name not in fields), None)
    if name is None:
        return
    near = (meant or {}).get(name)
    near = near if near in fields else nearest(name, fields)
    hint = f"did you mean `{near}`?" if near else f"the fields are {', '.join(fields)}"
    message = f"{unknown_field(name)}; {hint}"
    raise RequestError(message, param=name[:80], code="unknown_parameter")


# -- kinds of fields


class _Whole:
    """Takes a whole number that JSON writes as `2.0`, too; in pydantic's own code, for speed."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        exact = core_schema.float_schema(strict=True, ge=-_MAX_EXACT, le=_MAX_EXACT)
        from_float = core_schema.chain_schema([exact, core_schema.int_schema(strict=False)])
        whole = core_schema.int_schema(strict=True)
        either = core_schema.union_schema(
            [(whole, "<whole>"), (from_float, "<float>")], mode="left_to_right"
        )
        return core_schema.chain_schema([either, handler(source)])


WHOLE = _Whole()
Whole = Annotated[int, WHOLE]
Count = Annotated[int, Field(ge=1), WHOLE]
NonNegative = Annotated[int, Field(ge=0), WHOLE]
FullText = Annotated[str, Field(min_length=1)]


@dataclass(frozen=True)
class Wanted:
    """Words all that is wrong with a field as one fault: `must be <wanted>, not <value>`."""

    wanted: str

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.custom_error_schema(
            handler(source),
            custom_error_type="wanted",
            custom_error_message="wanted",
            custom_error_context={"wanted": self.wanted},
        )


@dataclass(frozen=True)
class AtMost:
    """Bounds the members of an object before any is looked at, each of which can be a fault."""

    num_members: int

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._check, handler(source))

    def _check(self, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > self.num_members:
            raise PydanticCustomError("too_long", "too_long", {"max_length": self.num_members})
        return value


def unsupported_unless(harmless: Callable[[Any], bool], reason: str) -> AfterValidator:
    """Refuses what only other servers honor.

    Args:
        harmless: Whether a value asks for nothing.
        reason: What `this model` does instead.
    """

    def check(value: Any) -> Any:
        if harmless(value):
            return value
        raise unsupported(reason)

    return AfterValidator(check)


def unsupported(reason: str) -> PydanticCustomError:
    """Returns the error `is <value>, but this model <reason>` for a validator to raise."""
    return PydanticCustomError("unsupported", "unsupported", {"reason": reason})


def wanted(what: str) -> PydanticCustomError:
    """Returns the error `must be <what>, not <value>` for a validator to raise."""
    return PydanticCustomError("wanted", "wanted", {"wanted": what})


@dataclass(frozen=True)
class Via:
    """Checks a field as another type, and then converts it.

    Attributes:
        checked: What the request may have.
        convert: Returns what the field holds; may raise `wanted`, `unsupported` or RequestError.
    """

    checked: Any
    convert: Callable[[Any], Any]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(
            self.convert, handler.generate_schema(self.checked)
        )


# -- forms


def read_text(annotation: Any, text: str) -> Any:
    """Returns what a form's text stands for in a field; what stands for nothing stays text."""
    kinds = set(kinds_in(annotation))
    if list in kinds:
        return _read_list(text)
    if bool in kinds:
        return _BOOLEANS.get(text.lower(), text)
    if int in kinds and _WHOLE.fullmatch(text):
        return int(text)
    if float in kinds and _NUMBER.fullmatch(text):
        return float(text)
    return text


def _read_list(text: str) -> Any:
    """Reads JSON, or the one item of a list."""
    if text[:1] not in ("{", "["):
        return [text]
    try:
        return decode_json(text)
    except (msgspec.DecodeError, RecursionError):
        return text


def kinds_in(annotation: Any) -> Iterator[type]:
    """Yields each of `bool`, `int`, `float`, `str` and `list` (or dict) that a field may be."""
    if annotation in (bool, int, float, str):
        yield annotation
    elif typing.get_origin(annotation) in (list, dict):
        yield list
    elif typing.get_origin(annotation) is Annotated:
        yield from kinds_in(typing.get_args(annotation)[0])
    elif isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        for part in typing.get_args(annotation):
            yield from kinds_in(part)
