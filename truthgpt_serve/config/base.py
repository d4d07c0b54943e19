"""The base of every section and the value types that sections share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from truthgpt_serve.config.variables import Expanded, read_scalar
from truthgpt_serve.request_schema import kinds_in
from truthgpt_serve.wording import shown

SCIENTIFIC = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+")
"""A number such as `5e-5`, which YAML 1.1 (so also Ray's own loader) reads as text."""

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""What a model or adapter name may look like: it becomes a path segment and a metric label."""
ALIAS_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:@+-]*(/[A-Za-z0-9][A-Za-z0-9._:@+-]*)*$"
"""What another name of a model may look like: as hubs and other servers write them."""
MODULE_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$"
FUNCTION_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*$"
MAX_COUNT = 2**53
"""The largest count: a larger one is not exact where it is reckoned with seconds and shares."""
MAX_SECONDS = 1_000_000_000
"""Some thirty years, which timers can still be set to."""
MAX_REPLICAS = 10_000
"""Of one application: more than Ray Serve's controller follows."""
PATTERN_WORDS = {
    NAME_PATTERN: "letters, digits, dots, dashes and underscores, first a letter or digit",
    ALIAS_PATTERN: "letters, digits and `._:@+-` in parts with single slashes between them, each "
    "of which begins with a letter or digit",
    MODULE_PATTERN: "a Python module, such as my_package.models",
    FUNCTION_PATTERN: "a Python module and a function in it, such as my_package.rewards:length",
}


def show_value(value: Any) -> str:
    """Returns a value as a message shows it: short, in YAML's words, and variables by name."""
    if isinstance(value, Mapping):
        return "a mapping"
    return shown(value.written if isinstance(value, Expanded) else value)


class Section(BaseModel):
    """One mapping of a configuration: unknown keys are refused, no value is converted silently."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    @model_validator(mode="before")
    @classmethod
    def _read_variables(cls, data: Any) -> Any:
        """Reads a variable that is a whole value as the number that its key wants."""
        if not isinstance(data, dict) or not any(isinstance(v, Expanded) for v in data.values()):
            return data
        wanted = {field.alias or key: field.annotation for key, field in cls.model_fields.items()}
        return {key: _as_wanted(value, wanted.get(key)) for key, value in data.items()}


def _as_wanted(value: Any, annotation: Any) -> Any:
    if not isinstance(value, Expanded) or not value.is_whole:
        return value
    kinds = set(kinds_in(annotation))
    if float in kinds:
        kinds.add(int)
    read = read_scalar(value)
    if str in kinds or not any(isinstance(read, kind) for kind in kinds):
        return value
    return read


class Refusal(NamedTuple):
    """What a validator of ours finds wrong.

    Attributes:
        key: The key at fault, dotted, below the section or value that is validated.
        message: What is wrong.
        fix: What to write instead.
        uses: Other keys of the section that the verdict rests on: if one of them is faulty
            itself, the verdict is not given.
    """

    key: str
    message: str
    fix: str
    uses: tuple[str, ...] = ()


def refuse(refusals: list[Refusal]) -> PydanticCustomError:
    """Returns the error that a validator raises to refuse a value or a section."""
    return PydanticCustomError("refused", "refused", {"refusals": refusals})


def read_scientific(value: Any) -> Any:
    """Returns the number that a text such as `5e-5` means, and any other value unchanged."""
    if isinstance(value, str) and SCIENTIFIC.fullmatch(value):
        return float(value)
    return value


def _check_exact(value: int) -> int:
    if value > MAX_COUNT:
        raise refuse([Refusal("", "is too large", f"write at most {MAX_COUNT}")])
    return value


Number = Annotated[float, BeforeValidator(read_scientific)]
PositiveNumber = Annotated[float, Field(gt=0), BeforeValidator(read_scientific)]
NonNegativeNumber = Annotated[float, Field(ge=0), BeforeValidator(read_scientific)]
Seconds = Annotated[float, Field(ge=0.001, le=MAX_SECONDS), BeforeValidator(read_scientific)]
NonNegativeSeconds = Annotated[float, Field(ge=0, le=MAX_SECONDS), BeforeValidator(read_scientific)]
Ratio = Annotated[float, Field(ge=0, le=1), BeforeValidator(read_scientific)]
Count = Annotated[int, Field(ge=1), AfterValidator(_check_exact)]
RequestCount = Annotated[int, Field(ge=1, le=65536)]
ReplicaCount = Annotated[int, Field(ge=1, le=MAX_REPLICAS)]
NonNegativeCount = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=128)]
Alias = Annotated[str, Field(pattern=ALIAS_PATTERN, max_length=256)]
