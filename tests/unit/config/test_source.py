from __future__ import annotations

from truthgpt_serve.config.source import dotted, parse_dotted


def test_dotted_paths_round_trip() -> None:
    for path in ((), ("a",), ("a", 0), ("serving", "adapters", 3, "name"), ("a", 0, 1, "b")):
        assert parse_dotted(dotted(path)) == path
