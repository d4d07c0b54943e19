"""Writes deployments/vllm/engine_arguments.json from the installed engine's own argument parser.

Run `python scripts/generate_engine_arguments.py` after a change of the engine's version, and
`--check` to compare only.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

LIST = Path(__file__).resolve().parent.parent / "deployments/vllm/engine_arguments.json"

_KINDS = {
    "int": "integer",
    "float": "number",
    "str": "string",
    "loads": "mapping",
    "parse_dataclass": "mapping",
    "union_dict_and_str": "string or mapping",
    "human_readable_int": "size",
    "human_readable_int_or_auto": "size",
    "<lambda>": "string",
}
_KIND_OF_NAME = {
    "allowed_headers": "json list",
    "allowed_methods": "json list",
    "allowed_origins": "json list",
    "optimization_level": "string or integer",
}
"""Arguments whose converter does not say what it takes."""
_BOUNDS = {
    "ge": "minimum",
    "gt": "exclusiveMinimum",
    "le": "maximum",
    "lt": "exclusiveMaximum",
}
"""For each bound of a field: its name in JSON Schema."""


def generate() -> str:
    """Returns the text of the list: one JSON object a line, sorted by name.

    Raises:
        ValueError: An argument's converter is unknown to this script.
    """
    parser = _parser()
    actions = {action.dest: action for action in parser._actions}
    known = _known_values()
    bounds = _bounds(parser)
    rows = [
        json.dumps(
            _describe(name, actions[name], known.get(name), bounds.get(name)), ensure_ascii=False
        )
        for name in sorted(actions)
        if name != "help"
    ]
    return "[\n" + ",\n".join(rows) + "\n]\n"


def _parser() -> argparse.ArgumentParser:
    # The engine fills in the help texts only when the command line asks for help.
    sys.argv = [sys.argv[0], "--help"]
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser: argparse.ArgumentParser = make_arg_parser(FlexibleArgumentParser())
    return parser


def _known_values() -> dict[str, list[str]]:
    """Returns the values that the engine looks up in tables of its own, outside the parser."""
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    return {
        "attention_backend": sorted(AttentionBackendEnum.__members__),
        "quantization": sorted(QUANTIZATION_METHODS),
        "reasoning_parser": sorted(ReasoningParserManager.list_registered()),
        "tool_call_parser": sorted(ToolParserManager.list_registered()),
    }


def _bounds(parser: argparse.ArgumentParser) -> dict[str, dict[str, float]]:
    """Returns the bounds of numbers, by argument, each as JSON Schema calls it.

    The engine checks them only when it starts, in the class by which it names a group of arguments.
    """
    import vllm.config

    found = {}
    for group in parser._action_groups:
        fields = getattr(getattr(vllm.config, str(group.title), None), "__pydantic_fields__", {})
        for action in group._group_actions:
            metadata = fields[action.dest].metadata if action.dest in fields else []
            bounds = {
                name: getattr(item, attribute)
                for item in metadata
                for attribute, name in _BOUNDS.items()
                if hasattr(item, attribute)
            }
            if bounds:
                found[action.dest] = bounds
    return found


def _describe(
    name: str,
    action: argparse.Action,
    known: list[str] | None,
    bounds: dict[str, float] | None,
) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "kind": _kind(action)}
    if bounds:
        row["bounds"] = bounds
    choices = [choice for choice in action.choices or () if choice is not None]
    if choices:
        row["choices"] = sorted(choices)
    if known:
        row["known"] = known
    row["help"] = _one_line(action.help or "")
    return row


def _kind(action: argparse.Action) -> str:
    if action.dest in _KIND_OF_NAME:
        return _KIND_OF_NAME[action.dest]
    if action.nargs == 0:
        return "flag"
    kind = _KINDS.get(_converter_name(action.type))
    if kind is None:
        raise ValueError(f"argument {action.dest!r} has the unknown converter {action.type!r}")
    if action.nargs == "+" or type(action).__name__ == "_AppendAction":
        return f"list of {kind}"
    return kind


def _converter_name(converter: Any) -> str:
    """Returns the innermost function's name: the engine wraps converters to accept `None`."""
    if converter is None:
        return "str"
    while converter.__name__ in ("_optional_type", "_parse_type"):
        converter = inspect.getclosurevars(converter).nonlocals["return_type"]
    return str(converter.__name__)


def _one_line(text: str) -> str:
    text = " ".join(text.replace("%%", "%").split("\n\n")[0].split()).replace("`", "")
    sentence = re.split(r"(?<=[.!?])\s+(?=[A-Z\-])", text)[0]
    return sentence if len(sentence) <= 240 else sentence[:237].rstrip() + "..."


def main() -> int:
    """Writes the list, or with `--check` compares it; returns the exit status."""
    check = "--check" in sys.argv[1:]
    text = generate()
    if not check:
        LIST.write_text(text, encoding="utf-8")
        print(f"wrote {LIST.name}: {text.count(chr(10)) - 2} arguments")
        return 0
    same = LIST.read_text(encoding="utf-8") == text
    print(f"{LIST.name} is {'up to date' if same else 'stale: run this script without --check'}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
