"""Builds the playground's pages with Gradio, and the ASGI application that serves them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI

from truthgpt_serve.cluster.haproxy.playground import MOUNT
from truthgpt_serve.config.playground import PlaygroundConfig
from truthgpt_serve.playground import fields, fragments
from truthgpt_serve.playground.client import ServiceClient, ServiceFault
from truthgpt_serve.playground.guard import Guard
from truthgpt_serve.playground.page import QUICK, Tools, choose, session_of
from truthgpt_serve.playground.pages.audio import add_audio
from truthgpt_serve.playground.pages.chat import add_chat
from truthgpt_serve.playground.pages.embeddings import add_embeddings
from truthgpt_serve.playground.pages.images import add_images
from truthgpt_serve.playground.pages.models import add_models
from truthgpt_serve.playground.running import Running
from truthgpt_serve.playground.sessions import Sessions
from truthgpt_serve.playground.uploads import Uploads

TITLE = "TruthGPT Serve playground"
QUEUE_PERIOD_S = 0.02
"""How often Gradio's queue is looked at; by itself every millisecond, 3 % of a core when idle."""
MAX_SESSIONS = 200
"""Open pages whose conversations are kept; then the one that was used longest ago is forgotten."""
TASKS = (
    ("text-generation",),
    ("image-generation",),
    ("custom",),
    ("embedding",),
)
"""Tasks of the models that each page offers, in the pages' order."""
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
ICON = (
    '<link rel="icon" href="data:image/svg+xml,%3Csvg xmlns=%22http://www.w3.org/2000/svg%22 '
    "viewBox=%220 0 16 16%22%3E%3Crect width=%2216%22 height=%2216%22 rx=%223%22 "
    'fill=%22%231d4ed8%22/%3E%3Cpath d=%22M3 4h10v2H9v7H7V6H3z%22 fill=%22white%22/%3E%3C/svg%3E">'
)
STATIC = Path(__file__).with_name("static")
READ_KEY = "() => truthgptKey.read()"
KEEP_KEY = "(key) => truthgptKey.keep(key)"
"""`static/playground.js` has both."""


def build_pages(config: PlaygroundConfig, client: ServiceClient, running: Running) -> gr.Blocks:
    """Returns all pages.

    Args:
        config: Limits.
        client: The service.
        running: Where running requests are noted.
    """
    with gr.Blocks(title=TITLE, analytics_enabled=False) as pages:
        gr.HTML(f"<h1>{TITLE}</h1>", elem_id="tg-title")
        with gr.Accordion("API key", open=False, elem_id="tg-key"):
            key = gr.Textbox(
                label="API key",
                type="password",
                max_length=4096,
                autofocus=False,
                info="Only if the service asks for one. It stays in this tab and is sent with "
                "each request.",
            )
        tools = Tools(client, running, config, key)
        problem = gr.HTML()
        with gr.Tabs(overflow_behavior="wrap"):
            choosers = []
            for name, add in (
                ("Chat", add_chat),
                ("Images", add_images),
                ("Speech", add_audio),
                ("Embeddings", add_embeddings),
            ):
                with gr.Tab(name):
                    choosers.append(add(tools))
            with gr.Tab("Models") as tab:
                add_models(tools, tab)

        find_models = _make_finder(client)
        # The key that this tab had before it was loaded again; then the models that it shows.
        pages.load(None, None, key, js=READ_KEY, **QUICK).then(
            find_models, [key, *choosers], [problem, *choosers], **QUICK
        )
        key.change(None, key, None, js=KEEP_KEY, **QUICK)
        key.change(find_models, [key, *choosers], [problem, *choosers], **QUICK)

        def leave(request: gr.Request) -> None:
            running.stop_all(session_of(request))

        pages.unload(leave)
    pages.queue(max_size=config.max_waiting, api_open=False, default_concurrency_limit=16)
    if not hasattr(pages._queue, "sleep_when_free"):
        raise RuntimeError(f"Gradio's queue has no `sleep_when_free` any more: adapt {__file__}")
    pages._queue.sleep_when_free = QUEUE_PERIOD_S
    return pages


def _make_finder(client: ServiceClient) -> Callable[..., Awaitable[tuple[Any, ...]]]:
    async def find_models(key: str, *chosen: Any) -> tuple[Any, ...]:
        try:
            models = await client.models(fields.key(key))
        except ServiceFault as error:
            return fragments.fault(str(error)), *(gr.skip() for _ in chosen)
        pairs = zip(TASKS, chosen, strict=True)
        return "", *(choose(models, tasks, value) for tasks, value in pairs)

    return find_models


def create_theme() -> gr.themes.Base:
    """Returns the theme: fonts of the user's system, and colors with the contrast of WCAG AA."""
    return gr.themes.Base(font=FONTS, font_mono=MONO, primary_hue="blue", neutral_hue="slate").set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_label_text_color="*neutral_600",
        block_label_text_color_dark="*neutral_300",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        input_placeholder_color="*neutral_600",
        input_placeholder_color_dark="*neutral_300",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
        button_cancel_background_fill="#b91c1c",
        button_cancel_background_fill_dark="#b91c1c",
        button_cancel_background_fill_hover="#991b1b",
        button_cancel_background_fill_hover_dark="#991b1b",
        button_cancel_text_color="white",
        button_cancel_text_color_dark="white",
        link_text_color="*primary_700",
        link_text_color_dark="*primary_300",
    )


def create_app(
    config: PlaygroundConfig, client: ServiceClient, running: Running, files: Path
) -> Guard:
    """Returns the application that serves the pages below `/ui`.

    Args:
        config: Limits.
        client: The service.
        running: Where running requests are noted.
        files: Folder of uploads; the same that Gradio has.
    """
    pages = build_pages(config, client, running)
    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        pages,
        path=MOUNT,
        theme=create_theme(),
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=config.max_upload_bytes,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        allowed_paths=[],
    )
    num_inputs = {number: len(handler.inputs) for number, handler in pages.fns.items()}

    def forget(paths: set[str]) -> None:
        for noted in pages.temp_file_sets:
            noted -= paths

    uploads = Uploads(files, config.max_upload_bytes, forget)
    sessions = Sessions(pages.app, pages, MAX_SESSIONS, running.stop_all)
    running.num_unread = sessions.num_unread
    return Guard(app, MOUNT, uploads, num_inputs, sessions.is_full, head=read_head())


def read_head() -> str:
    """Returns what the page has in its head beside Gradio's own."""
    style, script = (
        (STATIC / name).read_text(encoding="utf-8") for name in ("playground.css", "playground.js")
    )
    return f"{ICON}<style>{style}</style><script>{script}</script>"
