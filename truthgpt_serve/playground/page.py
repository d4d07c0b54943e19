"""What the pages share: the service, the running requests, the key, and the way to report."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

import gradio as gr

from truthgpt_serve.config.playground import PlaygroundConfig
from truthgpt_serve.playground.client import ServiceClient
from truthgpt_serve.playground.code import Sent
from truthgpt_serve.playground.fragments import NO_CODE, code_of
from truthgpt_serve.playground.running import Running

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Tools:
    """What each page is given.

    Attributes:
        client: The service.
        running: Requests that run.
        config: Limits.
        key: The field with the API key.
    """

    client: ServiceClient
    running: Running
    config: PlaygroundConfig
    key: Any

    def code(
        self,
        request: gr.Request,
        path: str,
        body: dict[str, Any],
        key: str,
        file: str | None = None,
    ) -> str:
        """Returns a request as HTML of code, with the address that the browser uses."""
        base = self.config.base_url or origin_of(request) or self.client.base_url
        return code_of(Sent(f"{base}{path}", body, has_key=bool(key), file=file))

    async def run(
        self, request: gr.Request, kind: str, call: Callable[[], Awaitable[T]]
    ) -> T | None:
        """Runs a call of the service as a page's request of a kind.

        Returns:
            What the call returned; None if the page's user stopped it.

        Raises:
            ServiceFault: As the call.
        """
        answers: list[T] = []

        async def work(changed: Callable[[], None]) -> None:
            answers.append(await call())

        async with aclosing(self.running.follow(session_of(request), kind, work)) as updates:
            async for _ in updates:
                pass
        return answers[0] if answers else None

    def make_stop(self, kind: str) -> Callable[[gr.Request], None]:
        """Returns the handler that ends a page's request of a kind."""

        # Gradio reads the annotation to hand the request over.
        def stop(request: gr.Request) -> None:
            self.running.stop(session_of(request), kind)

        return stop

    def limits(self, name: str) -> dict[str, Any]:
        """Returns Gradio's options for what a page runs."""
        return {
            "concurrency_limit": self.config.max_running,
            "concurrency_id": name,
            "api_visibility": "private",
            "show_progress": "hidden",
        }


QUICK: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
"""Gradio's options for what takes no time."""


def origin_of(request: gr.Request) -> str | None:
    """Returns scheme, host and port under which the browser reached the page."""
    headers = request.headers
    host = headers.get("x-forwarded-host") or headers.get("host")
    if not host:
        return None
    scheme = headers.get("x-forwarded-proto") or "http"
    prefix = headers.get("x-forwarded-prefix", "").rstrip("/")
    return f"{scheme.split(',')[0].strip()}://{host.split(',')[0].strip()}{prefix}"


def session_of(request: gr.Request) -> str:
    """Returns the id of an open page."""
    return str(request.session_hash or "")


def model_field(label: str = "Model") -> Any:
    """Returns the field that chooses a model."""
    field = gr.Dropdown(choices=[], label=label, interactive=True, filterable=False)
    # The service knows which models exist. Gradio would refuse those of a page that is older than
    # this process.
    field.preprocess = lambda payload: payload
    return field


def number_field(label: str, value: str = "", **options: Any) -> Any:
    """Returns a field for a number, which may be empty: Gradio's own makes 0 of an empty one."""
    return gr.Textbox(
        value,
        label=label,
        placeholder="default",
        max_lines=1,
        max_length=24,
        min_width=100,
        elem_classes="tg-number",
        html_attributes=gr.InputHTMLAttributes(autocomplete="off"),
        **options,
    )


def code_field() -> Any:
    """Returns the place for the code of the last request."""
    with gr.Accordion("Show the code", open=False):
        return gr.HTML(NO_CODE)


def choose(models: Sequence[dict[str, Any]], tasks: Sequence[str], value: Any) -> Any:
    """Returns the update of a field that chooses a model of some tasks."""
    names = [one["id"] for one in models if task_of(one) in tasks]
    return gr.update(choices=names, value=value if value in names else next(iter(names), None))


def task_of(model: dict[str, Any]) -> str:
    """Returns a model's task, or an empty text."""
    return str((model.get("card") or {}).get("task") or "")
