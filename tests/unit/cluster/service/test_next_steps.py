"""Commands that the screen suggests."""

from __future__ import annotations

from truthgpt_serve.cluster.service.next_steps import suggest_commands

NOWHERE = "http://127.0.0.1:9"


def test_commands_fit_the_models() -> None:
    commands = suggest_commands(NOWHERE, {"t": "text-generation", "i": "image-generation"})
    assert [command.split()[1] for command in commands] == ["chat", "image", "models"]
    commands = suggest_commands(NOWHERE, {"a b'c": "text-generation"})
    assert len(commands) == 3
    assert commands[0].endswith("""chat 'a b'"'"'c'""")
    assert len(suggest_commands(NOWHERE, {})) == 2
