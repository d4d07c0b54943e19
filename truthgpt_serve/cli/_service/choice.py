"""Which model a command means when none is named."""

from __future__ import annotations

import click

from truthgpt_serve.cli._service.client import ServiceClient, model_path


def choose_model(client: ServiceClient, task: str, *, ask: bool = False) -> str:
    """Returns the model of a task that is the only one, or that the user chooses.

    Args:
        client: The service.
        task: What it must do.
        ask: Ask on the terminal when there are several.

    Raises:
        click.UsageError: There is none, or several and `ask` is False.
        ServiceFault: The service does not answer.
    """
    further = ("parent", "alias_of")  # adapters, and other names of the same models
    entries = [
        entry["id"]
        for entry in client.entries()
        if not any(isinstance(entry.get(key), str) for key in further)
    ]
    names = entries if len(entries) == 1 else [n for n in entries if _does(client, n, task)]
    if len(names) == 1:
        return str(names[0])
    if not names:
        known = f"; models: {', '.join(entries)}" if entries else ""
        raise click.UsageError(f"no model of the service is for {task}{known}")
    if not ask:
        raise click.UsageError(f"name one of the models for {task}: {', '.join(names)}")
    return str(click.prompt("model", type=click.Choice(names), default=names[0], err=True))


def _does(client: ServiceClient, name: str, task: str) -> bool:
    """Returns whether a model has the task, as far as its server says that."""
    found = client.get(model_path(name), accept=(404,))
    card = found.get("card") if isinstance(found, dict) else None
    return not isinstance(card, dict) or card.get("task") in (task, None)
