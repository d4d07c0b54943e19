"""The page of all models with their state, which refreshes itself."""

from __future__ import annotations

import time
from html import escape
from typing import Any

import gradio as gr

from truthgpt_serve.playground import fields, fragments
from truthgpt_serve.playground.client import ServiceFault
from truthgpt_serve.playground.page import QUICK, Tools, task_of

PERIOD_S = 5.0
_WORDS = {
    "RUNNING": "running",
    "DEPLOYING": "starting",
    "NOT_STARTED": "starting",
    "UNHEALTHY": "unhealthy",
    "DEPLOY_FAILED": "failed",
    "DELETING": "being removed",
}


def add_models(tools: Tools, tab: Any) -> None:
    """Adds the page.

    Args:
        tools: What the pages share.
        tab: The tab that it is in: it refreshes only while that is open.
    """
    with gr.Row(elem_classes="tg-buttons"):
        auto = gr.Checkbox(True, label=f"Refresh every {PERIOD_S:g} seconds", min_width=120)
        refresh = gr.Button("Refresh now")
    report = gr.HTML()
    table = gr.HTML()
    timer = gr.Timer(PERIOD_S, active=False)

    async def show(key: str) -> tuple[Any, ...]:
        try:
            readiness = await tools.client.readiness(fields.key(key))
            models = await tools.client.models(fields.key(key))
        except ServiceFault as error:
            return fragments.fault(str(error)), gr.skip()
        return "", to_table(models, readiness)

    def follow(wanted: bool) -> Any:
        return gr.Timer(active=wanted)

    options = {**tools.limits("models"), "trigger_mode": "once"}
    gr.on([refresh.click, timer.tick, tab.select], show, [tools.key], [report, table], **options)
    gr.on([auto.change, tab.select], follow, [auto], [timer], **QUICK)


def to_table(models: list[dict[str, Any]], readiness: dict[str, Any]) -> str:
    """Returns all models and adapters as an HTML table.

    Args:
        models: The entries of `/v1/models` with their cards.
        readiness: What `/ready` says.
    """
    states = readiness.get("models")
    states = states if isinstance(states, dict) else {}
    rows = "".join(map(lambda model: _row(model, states), models))
    if not rows:
        rows = '<tr><td colspan="5">The service has no models.</td></tr>'
    when = time.strftime("%H:%M:%S", time.gmtime())
    heads = "".join(
        f'<th scope="col">{head}</th>' for head in ("Model", "State", "Task", "Family", "Replicas")
    )
    return (
        '<div class="tg-scroll" tabindex="0" role="region" aria-label="Models">'
        f'<table class="tg-table"><caption>As of {when} UTC</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _row(model: dict[str, Any], states: dict[str, Any]) -> str:
    parent = model.get("parent")
    state = states.get(parent or model["id"])
    state = state if isinstance(state, dict) else {}
    status = str(state.get("status") or "")
    word = _WORDS.get(status, status.lower() or "unknown")
    why = state.get("last_error") or state.get("message") or ""
    kind = f"<small>adapter of {escape(str(parent))}</small>" if parent else ""
    card = model.get("card") or {}
    number = "" if parent else str(state.get("num_running_replicas", ""))
    return (
        f'<tr><th scope="row">{escape(model["id"])} {kind}</th>'
        f'<td><span class="tg-state" data-state="{escape(word)}">{escape(word)}</span> '
        f"<small>{escape(str(why))}</small></td><td>{escape(task_of(model))}</td>"
        f"<td>{escape(str(card.get('family') or ''))}</td><td>{escape(number)}</td></tr>"
    )
