"""The commands within a conversation: lines that begin with a slash."""

from __future__ import annotations

import time
from collections.abc import Callable

from truthgpt_serve.cli._chat.conversation import Conversation
from truthgpt_serve.cli._service.client import ServiceClient
from truthgpt_serve.cli._service.failures import unknown_model
from truthgpt_serve.wording import nearest

HELP = """\
/model [NAME]    say which model answers, or have another one answer from now on
/system [TEXT]   say the system prompt, or set it; /system - takes it away
/clear           forget what was said; the system prompt stays
/save [FILE]     save the conversation: .md as Markdown, else JSON
/help            this list
/exit            leave; so does Ctrl-D
Ctrl-C stops an answer. \"\"\" begins and ends a text of several lines. A text that begins with a
slash is sent when it begins with two."""

Say = Callable[[str], None]


class Slash:
    """Runs the commands of one conversation.

    Args:
        client: The service.
        conversation: What they change.
        say: Shows a line.
    """

    def __init__(self, client: ServiceClient, conversation: Conversation, say: Say) -> None:
        self._client = client
        self._conversation = conversation
        self._say = say
        self._commands: dict[str, Callable[[str], None]] = {
            "/model": self._model,
            "/system": self._system,
            "/clear": self._clear,
            "/save": self._save,
            "/help": lambda _: say(HELP),
        }

    def run(self, line: str) -> bool:
        """Runs a line; returns whether the conversation goes on."""
        name, _, rest = line.partition(" ")
        if name in ("/exit", "/quit", "/bye"):
            return False
        command = self._commands.get(name)
        if command is not None:
            command(rest.strip())
            return True
        near = nearest(name, [*self._commands, "/exit"])
        hint = f"did you mean {near}? " if near else ""
        self._say(f"there is no {name}: {hint}/help lists what there is")
        return True

    def _model(self, name: str) -> None:
        names = self._client.names()
        if not name:
            self._say(f"{self._conversation.model} answers; models: {', '.join(names)}")
        elif names and name not in names:
            self._say(unknown_model(name, names))
        else:
            self._conversation.model = name
            self._say(f"{name} answers from now on")

    def _system(self, text: str) -> None:
        if text:
            self._conversation.system = None if text == "-" else text
        self._say(f"system prompt: {self._conversation.system or 'none'}")

    def _clear(self, _: str) -> None:
        self._conversation.messages.clear()
        self._say("forgotten")

    def _save(self, name: str) -> None:
        from truthgpt_serve.config.paths import expand  # takes 0.1 s

        path = expand(name or time.strftime("chat-%Y%m%d-%H%M%S.json"))
        try:
            self._conversation.save(path)
        except FileExistsError:
            self._say(f"{path} exists already: name another file")
        except (OSError, ValueError) as error:
            self._say(f"{path} cannot be written: {error}")
        else:
            self._say(f"saved {path}")
