"""The page that a visitor of the playground sees while its process starts, or finds no room."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Awaitable, Callable
from contextlib import suppress
from hashlib import sha256
from html import escape
from string import Template

from truthgpt_serve.cluster.haproxy.playground import MOUNT
from truthgpt_serve.cluster.state import ApplicationState
from truthgpt_serve.errors import RouteNotFoundError
from truthgpt_serve.http.asgi import Send, send_bytes

AGAIN_S = 2
"""After this time the page asks again, and is replaced once the playground answers."""
WAKING_PATH = f"{MOUNT}/theme.css".encode()
"""A small file of the playground's, whose request has Ray Serve start its process."""
_FAILED = ("DEPLOY_FAILED", "UNHEALTHY")
_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>TruthGPT Serve playground</title>
<style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 40rem; margin: 20vh auto 0; padding: 1rem; }
</style></head><body>
<main><h1>$title</h1>
<p role="status">$text</p></main>
<p>It opens here by itself, or <a href="">try again</a>.</p>
<script>$script</script>
</body></html>
""")
_SCRIPT = f"""
const main = document.querySelector("main");
async function again() {{
  try {{
    const answer = await fetch(location.href, {{cache: "no-store"}});
    if (answer.ok || answer.status === 404) return location.reload();
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const now = page.querySelector("main");
    if (now && now.innerHTML !== main.innerHTML) main.innerHTML = now.innerHTML;
  }} catch {{}}
  setTimeout(again, {AGAIN_S * 1000});
}}
setTimeout(again, {AGAIN_S * 1000});
"""
"""Loads the page anew only for the playground: each time would interrupt who has it read aloud."""
_DIGEST = b64encode(sha256(_SCRIPT.encode()).digest()).decode()
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; "
    f"form-action 'none'; script-src 'sha256-{_DIGEST}'"
)


class StartPage:
    """Answers for the playground while it has no process, and has Ray Serve start one.

    Args:
        find: Returns the playground's state, by news that are not old; None where there is none.
        wake: Asks the playground for a path; it answers once it has started.
    """

    def __init__(
        self,
        find: Callable[[], Awaitable[ApplicationState | None]],
        wake: Callable[[bytes], Awaitable[object]],
    ) -> None:
        self._find = find
        self._wake = wake
        self._waking: asyncio.Task[None] | None = None

    async def answer(self, send: Send) -> None:
        """Sends the page, as an answer that says to try again.

        Raises:
            RouteNotFoundError: There is no playground.
        """
        state = await self._find()
        if state is None:
            raise RouteNotFoundError("this service has no playground")
        if self._waking is None or self._waking.done():
            self._waking = asyncio.create_task(self._ask(), name="waking the playground")
        title, text = _describe(state)
        page = _PAGE.substitute(title=escape(title), text=escape(text), script=_SCRIPT)
        headers = [
            (b"content-security-policy", _POLICY.encode()),
            (b"cache-control", b"no-store"),
            (b"retry-after", b"%d" % AGAIN_S),
        ]
        await send_bytes(
            send, page.encode(), b"text/html; charset=utf-8", status=503, headers=headers
        )

    async def _ask(self) -> None:
        with suppress(Exception):  # the page asks again, whatever it was
            await self._wake(WAKING_PATH)

    async def stop(self) -> None:
        """Ends the request that waits for the playground."""
        if self._waking is not None:
            self._waking.cancel()
            await asyncio.gather(self._waking, return_exceptions=True)


def _describe(state: ApplicationState) -> tuple[str, str]:
    """Returns a title and a sentence or two."""
    if state.status in _FAILED:
        text = f"Its process fails: `truthgpt logs {state.name}` says why, where the service runs."
        return "The playground does not start", text
    if state.waits_for:
        text = f"{state.waits_for}. With `cpus: 0` in its `args` it needs no free core."
        return "There is no room for the playground", f"{text[0].upper()}{text[1:]}"
    text = "Its process starts for the first visitor, which takes some seconds."
    return "The playground starts", text
