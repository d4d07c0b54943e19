"""The OpenAPI document: whole, valid, and true of the code that answers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import schemathesis
from jsonschema import Draft202012Validator  # type: ignore[import-untyped] # it has none

from truthgpt_serve.config.images import ImagesSection
from truthgpt_serve.config.text_limits import TextLimitsSection
from truthgpt_serve.errors import MethodError, RequestError, TruthGPTError
from truthgpt_serve.http.routes import ROUTES
from truthgpt_serve.router.openapi import openapi_document
from truthgpt_serve.router.openapi.document import ERRORS
from truthgpt_serve.server.audio.request import MAX_LANGUAGE_CHARS, Format, Granularity
from truthgpt_serve.server.images.request import FIELDS, FILES, ImageParser
from truthgpt_serve.server.tensors.datatypes import DATATYPES, MAX_RANK
from truthgpt_serve.server.tensors.request import MAX_ID_CHARS
from truthgpt_serve.server.text.messages import MAX_TOOL_CALLS, Role

DOCUMENT = openapi_document()
SCHEMAS = DOCUMENT["components"]["schemas"]


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def faults_of(value: Any, schema: dict[str, Any]) -> list[str]:
    """Returns what is wrong with a value by a schema of the document."""
    whole = {**schema, "components": DOCUMENT["components"]}  # where its references lead
    return [error.message for error in Draft202012Validator(whole).iter_errors(value)]


def properties(name: str) -> dict[str, Any]:
    """Returns the properties of a schema and of all that it is made of."""
    schema = SCHEMAS[name]
    found: dict[str, Any] = {}
    for part in schema.get("allOf", ()):
        found |= (
            properties(part["$ref"].rpartition("/")[2]) if "$ref" in part else part["properties"]
        )
    found |= schema.get("properties", {})
    return found


# -- the document


def test_each_route_is_described_and_nothing_else() -> None:
    served = {
        (method.lower(), route.path)
        for route in ROUTES
        if "service" in route.addresses
        for method in route.methods
    }
    assert {(method, path) for method, path, _ in operations()} == served


def test_it_is_valid() -> None:
    schemathesis.openapi.from_dict(openapi_document()).validate()
    for schema in SCHEMAS.values():
        Draft202012Validator.check_schema(schema)


def test_each_reference_leads_somewhere_and_each_schema_is_used() -> None:
    used = set(re.findall(r"'#/components/schemas/(\w+)'", str(DOCUMENT)))
    assert used == SCHEMAS.keys()
    for reference in set(re.findall(r"'#/(components/[\w/-]+)'", str(DOCUMENT))):
        found: Any = DOCUMENT
        for key in reference.split("/"):
            found = found[key]


def test_operations_have_what_generated_clients_need() -> None:
    names = [operation["operationId"] for _, _, operation in operations()]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z][A-Za-z]+", name) for name in names)
    tags = {tag["name"] for tag in DOCUMENT["tags"]}
    for method, path, operation in operations():
        assert operation["tags"], path
        assert set(operation["tags"]) <= tags, path
        assert operation["summary"], path
        assert ("requestBody" in operation) == (method == "post"), path
        given = [parameter for parameter in re.findall(r"\{(\w+)\}", path)]
        declared = [_resolved(parameter) for parameter in operation.get("parameters", [])]
        assert [item["name"] for item in declared if item["in"] == "path"] == given, path


def _resolved(value: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in value:
        return value
    _, _, kind, name = value["$ref"].split("/")
    found: dict[str, Any] = DOCUMENT["components"][kind][name]
    return found


def test_each_error_has_the_form_of_its_api() -> None:
    for _, path, operation in operations():
        forms = {
            _resolved(response)["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
            for status, response in operation["responses"].items()
            if int(status) >= 400
        }
        if path.startswith("/v2"):
            assert forms <= {"InferenceError"}, path
        elif path.startswith("/v1/messages"):
            assert forms == {"MessagesError"}, path
        else:
            assert forms <= {"Error", "Readiness"}, path


def test_what_is_to_be_tried_again_says_when() -> None:
    for _, path, operation in operations():
        for status in {"429", "503"} & operation["responses"].keys():
            headers = _resolved(operation["responses"][status])["headers"]
            assert "Retry-After" in headers, path
    assert DOCUMENT["components"]["headers"]["RetryAfter"]["required"]


def test_each_status_of_the_services_errors_is_described() -> None:
    kinds, waiting = set(), [TruthGPTError]
    while waiting:
        kinds.add(kind := waiting.pop())
        waiting += kind.__subclasses__()
    statuses = {
        kind.status for kind in kinds if kind.__module__.startswith("truthgpt_serve.errors.")
    }
    # That which a request of a described method to the service's own address never gets.
    assert statuses - ERRORS.keys() == {MethodError.status}
    described = {int(status) for _, _, one in operations() for status in one["responses"]}
    assert ERRORS.keys() <= described


def test_each_example_fits_its_schema() -> None:
    num = 0
    for _, path, operation in operations():
        for body in operation.get("requestBody", {}).get("content", {}).values():
            for name, example in body.get("examples", {}).items():
                assert faults_of(example["value"], body["schema"]) == [], f"{path} {name}"
                num += 1
    assert num > 15


# -- true of the code


@pytest.mark.parametrize(
    ("schema", "operation"),
    [
        ("ImageRequest", "generation"),
        ("ImageEditForm", "edit"),
        ("ImageVariationForm", "variation"),
    ],
)
def test_the_fields_of_images_are_those_that_are_read(schema: str, operation: Any) -> None:
    assert properties(schema).keys() == {*FIELDS[operation].model_fields, *FILES[operation]}


def test_the_bounds_of_images_are_those_that_are_checked() -> None:
    limits = ImagesSection()
    fields = properties("ImageRequest")
    assert fields["n"]["maximum"] == limits.max_images
    assert SCHEMAS["ImagePrompt"]["maxLength"] == limits.max_prompt_chars
    assert properties("ImageEditForm")["image"]["maxItems"] == limits.max_input_images
    parser = ImageParser(limits, None)
    body = {"model": "m", "prompt": "p", "output_format": "jpeg", "stream": True}
    num = 0
    for name, schema in fields.items():
        for key, step in (("minimum", -1), ("maximum", 1)):
            if key in schema:
                parser.parse_json({**body, name: schema[key]})
                with pytest.raises(RequestError) as refusal:
                    parser.parse_json({**body, name: schema[key] + step})
                assert refusal.value.param == name
                num += 1
        for word in schema.get("enum", ()):
            if (name, word) not in (("background", "transparent"), ("response_format", "url")):
                parser.parse_json({**body, name: word})
    assert num >= 11


def test_other_bounds_are_those_that_are_checked() -> None:
    limits = TextLimitsSection()
    text, chat = properties("TextFields"), properties("ChatRequest")
    assert text["n"]["maximum"] == limits.max_n
    assert chat["messages"]["maxItems"] == limits.max_messages
    assert chat["tools"]["maxItems"] == limits.max_tools
    assert chat["top_logprobs"]["maximum"] == limits.max_logprobs
    assistant = properties("AssistantMessage")
    roles = [properties(kind)["role"]["enum"] for kind in ("GivenMessage", "ToolMessage")]
    assert {*roles[0], *roles[1], assistant["role"]["const"]} == set(get_args(Role))
    assert assistant["tool_calls"]["maxItems"] == MAX_TOOL_CALLS
    audio = DOCUMENT["paths"]["/v1/audio/transcriptions"]["post"]["requestBody"]["content"]
    fields = audio["multipart/form-data"]["schema"]["allOf"][1]["properties"]
    assert set(properties("AudioForm")["response_format"]["enum"]) == set(get_args(Format))
    assert set(fields["timestamp_granularities[]"]["items"]["enum"]) == set(get_args(Granularity))
    assert fields["language"]["maxLength"] == MAX_LANGUAGE_CHARS
    assert set(SCHEMAS["Datatype"]["enum"]) == set(DATATYPES)
    assert SCHEMAS["Shape"]["maxItems"] == MAX_RANK
    assert properties("TensorRequest")["id"]["maxLength"] == MAX_ID_CHARS
