from __future__ import annotations

from truthgpt_serve.grammar.fields import find_grammars


def test_grammars_are_found_in_every_field() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    found = {
        (one.kind, one.param)
        for body in (
            {"structured_outputs": {"json": {}, "regex": "a", "choice": ["a"], "grammar": "g"}},
            {"structured_outputs": {"structural_tag": "{}"}},
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
            {"response_format": {"type": "structural_tag", "format": {}}},
            {"text": {"format": {"type": "json_schema", "schema": {}}}},
            {"output_config": {"format": {"type": "json_schema", "schema": {}}}},
            {"sampling_params": {"structured_outputs": {"regex": "a"}}},
            {"tools": [tool], "tool_choice": "required"},
            {"tools": [{"name": "f", "input_schema": {}}], "tool_choice": {"type": "any"}},
        )
        for one in find_grammars(body)
    }
    outputs = "structured_outputs"
    assert found == {
        *((kind, f"{outputs}.{kind}") for kind in ("json", "regex", "choice", "grammar")),
        ("structural_tag", f"{outputs}.structural_tag"),
        ("json", "response_format.json_schema.schema"),
        ("structural_tag", "response_format"),
        ("json", "text.format.schema"),
        ("json", "output_config.format.schema"),
        ("regex", f"sampling_params.{outputs}.regex"),
        ("tools", "tools"),
    }
    assert not list(find_grammars({"tools": [tool], "tool_choice": "auto"}))
    assert not list(find_grammars({"tools": [tool], "tool_choice": "none"}))
    assert not list(find_grammars({"tools": 5, "text": "x", "structured_outputs": [1]}))
    strict = {"name": "f", "strict": True, "parameters": {"type": "object"}}
    assert [one.kind for one in find_grammars({"tools": [strict]})] == ["tools"]
