"""`truthgpt why`: why a model does not run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from truthgpt_serve.cli._service.completion import complete_models
from truthgpt_serve.cli.main import EXIT_FAILED

if TYPE_CHECKING:
    from truthgpt_serve.cli._why.report import Report


@click.command()
@click.argument("model", shell_complete=complete_models)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@click.pass_context
def why(ctx: click.Context, model: str, as_json: bool) -> None:
    """Says why a model does not run.

    Its state, the last error, the traceback of its code, what it waits for.

    Asks the service, then looks at the files of this machine, and says where it looked. Exits with
    0 if the model runs, else with 1.
    """
    from truthgpt_serve.cli._service.address import find_address
    from truthgpt_serve.cli._why.report import find_out

    report = find_out(model, find_address())
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=2, ensure_ascii=False))
    else:
        _tell(report)
    if not report.runs:
        ctx.exit(EXIT_FAILED)


def _tell(report: Report) -> None:
    served_by = f" (served by {report.application})" if report.application else ""
    click.echo(f"{report.model}{served_by} {_state(report)}")
    for title, text in (("cause", report.cause), ("waits for", report.waits_for)):
        if text:
            click.echo(f"{title}: {text}")
    for death in report.deaths:
        click.echo(f"a process died: {death}")
    for fault in report.faults:
        click.echo(f"fault: {fault}")
    for title, lines in (("traceback", report.traceback), ("it said last", report.last_lines)):
        if lines:
            click.echo(f"\n{title}:")
            for line in lines:
                click.echo(f"  {line}")
    if report.traceback or report.last_lines:
        click.echo()
    for advice in report.advice:
        click.echo(f"what to do: {advice}")
    click.secho(f"looked at: {', '.join(report.looked_at)}", dim=True)


def _state(report: Report) -> str:
    if report.state is None:
        return "is not known to run: the service does not say"
    number = report.num_replicas
    if report.runs:
        if number == 0:
            return "runs, scaled to zero: the next request starts a replica"
        return "runs" if number is None else f"runs: {number} replica{'s' if number > 1 else ''}"
    since = "" if report.seconds is None else f", {report.seconds:.0f} s after it was deployed"
    words = {"DEPLOY_FAILED": "failed to start", "DEPLOYING": "is starting"}
    state = f"{words.get(report.state, 'is ' + report.state.lower())} ({report.state}){since}"
    if report.state == "DEPLOY_FAILED" and number:
        replicas = "1 replica" if number == 1 else f"{number} replicas"
        return f"{state}; {replicas} can still answer"
    return state
