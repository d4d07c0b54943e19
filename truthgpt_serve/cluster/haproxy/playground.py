"""Has a visitor of the playground see a page at once while its process starts.

Works on the lines of the configuration that Ray Serve writes. Without a replica Ray holds a request
until there is one, and a browser shows nothing meanwhile, for ever where there is no room. The
page itself is asked for at a path of the routers' instead; all other requests are held, so that a
tab that has been open for long goes on.
"""

from __future__ import annotations

import re

from truthgpt_serve.cluster.haproxy.configuration import CLIENTS, insert
from truthgpt_serve.cluster.haproxy.models import servers, track, up_section

MOUNT = "/ui"
START_PATH = "/-/playground"
"""Where the routers have the page that a visitor sees meanwhile."""
HELD_S = 180
"""How long a request is held that gets no answer: a busy machine takes long to import Gradio."""


def show_start(lines: list[str]) -> None:
    """Adds the rules for the playground, where there is one.

    Args:
        lines: The configuration, which is changed; a router is in it.
    """
    pattern = re.compile(rf"^\s*acl is_(\S+) path {MOUNT}$")
    backend = next((found[1] for line in lines if (found := pattern.match(line))), None)
    if backend is None or f"backend {backend}" not in lines:
        return
    condition = f"METH_GET {{ path {MOUNT} {MOUNT}/ }}"
    if servers(lines, backend):
        track(lines, backend)
        condition = f"{condition} {{ nbsrv({up_section(backend)}) lt 1 }}"
    else:
        insert(lines, f"backend {backend}", f"timeout server {HELD_S}s")
    insert(lines, CLIENTS, f"http-request set-path {START_PATH} if {condition}")
