"""`truthgpt chat`: talks with a text model of the service, on a terminal or in a pipe."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from truthgpt_serve.cli._service.completion import complete_models
from truthgpt_serve.cli._service.numbers import FiniteRange
from truthgpt_serve.cli.main import EXIT_INTERRUPTED

if TYPE_CHECKING:
    from truthgpt_serve.cli._chat.conversation import Conversation
    from truthgpt_serve.cli._service.client import ServiceClient

MAX_INPUT_CHARS = 64 << 20
TASK = "text-generation"


@click.command()
@click.argument("model", required=False, shell_complete=complete_models)
@click.option("--prompt", "-p", help="Ask this, print the answer and stop; - is standard input.")
@click.option("--system", "-s", help="The system prompt.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Longest answer, in tokens.")
@click.option("--temperature", type=FiniteRange(0, 2), help="0 is the likeliest answer.")
@click.option("--seed", type=click.IntRange(min=0), help="Repeats a drawn answer.")
@click.option("--stats", is_flag=True, help="Say after each answer how fast it came.")
@click.pass_context
def chat(
    ctx: click.Context,
    /,
    model: str | None,
    prompt: str | None,
    system: str | None,
    stats: bool,
    **options: Any,
) -> None:
    """Talks with a text model of the service.

    Without MODEL with the only one, or the one that you choose.

    On a terminal it goes on until Ctrl-D; /help lists its commands, and Ctrl-C stops an answer.
    In a pipe the whole input is one question: echo hi | truthgpt chat story
    """
    from truthgpt_serve.cli._chat.conversation import Conversation
    from truthgpt_serve.cli._service.choice import choose_model
    from truthgpt_serve.cli._service.client import ServiceClient
    from truthgpt_serve.cli._service.utf8 import check_text

    interactive = prompt is None and sys.stdin.isatty()
    for what, text in (("MODEL", model), ("--system", system), ("--prompt", prompt)):
        check_text(text or "", what)
    given = {name: value for name, value in options.items() if value is not None}
    if stats:
        given["stream_options"] = {"include_usage": True}
    with ServiceClient() as client:
        question = None if interactive else _read_question(prompt)
        name = model or choose_model(client, TASK, ask=interactive)
        conversation = Conversation(name, system, given)
        if question is None:
            _talk(client, conversation, stats=stats)
        elif not _answer(client, conversation, question, stats=stats):
            ctx.exit(EXIT_INTERRUPTED)


def _read_question(prompt: str | None) -> str:
    text = prompt if prompt not in (None, "-") else _read_input()
    if text is None or not text.strip():
        raise click.UsageError("there is nothing to ask: give --prompt TEXT, or write to the pipe")
    return text


def _read_input() -> str:
    from truthgpt_serve.cli._service.utf8 import check_text

    try:
        text = sys.stdin.read(MAX_INPUT_CHARS)
    except UnicodeDecodeError as error:
        raise click.UsageError(f"standard input is not text in UTF-8: {error}") from error
    check_text(text, "standard input")
    return text.removesuffix("\n")


def _talk(client: ServiceClient, conversation: Conversation, *, stats: bool) -> None:
    from truthgpt_serve.cli._chat.lines import read_text
    from truthgpt_serve.cli._chat.slash import Slash
    from truthgpt_serve.cli._service.failures import ServiceFault

    def say(text: str) -> None:
        click.secho(text, dim=True, err=True)

    slash = Slash(client, conversation, say)
    say(f"{conversation.model} at {client.address.shown}; /help lists the commands")
    while (text := read_text(say)) is not None:
        if not text.strip():
            continue
        if text.startswith("/") and not text.startswith("//"):
            if not slash.run(text.strip()):
                return
            continue
        try:
            _answer(
                client,
                conversation,
                text.replace("//", "/", 1) if text[0] == "/" else text,
                stats=stats,
            )
        except ServiceFault as fault:
            click.secho(fault.message, fg="red", err=True)
        except KeyboardInterrupt:
            say("stopped")  # a second Ctrl-C, before the first was done with


def _answer(
    client: ServiceClient, conversation: Conversation, question: str, *, stats: bool
) -> bool:
    """Prints an answer as it comes; returns whether it was left to its end."""
    from truthgpt_serve.cli._chat.lines import Printer

    printer = Printer()
    pieces = conversation.ask(client, question)
    complete = False
    try:
        for piece in pieces:
            printer.show(piece.text, piece.reasoning)
        complete = True
    except KeyboardInterrupt:
        printer.end()
        click.secho("stopped", dim=True, err=True)
    finally:
        pieces.close()
        printer.end()
    last = conversation.last
    if complete and last.finish == "length":
        click.secho("cut off: the answer reached its longest length", dim=True, err=True)
    if stats:
        click.secho(_describe(last), dim=True, err=True)
    return complete


def _describe(last: Any) -> str:
    if last.first_s is None:
        return "no answer"
    parts = [f"first text after {last.first_s:.3f} s", f"all after {last.total_s:.2f} s"]
    if last.num_tokens is not None:
        rest_s = last.total_s - last.first_s
        speed = f", {(last.num_tokens - 1) / rest_s:.0f} tokens/s" if rest_s > 0 else ""
        parts.append(f"{last.num_tokens} tokens{speed}")
    return "; ".join(parts)
