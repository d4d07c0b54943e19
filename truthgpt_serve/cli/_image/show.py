"""Shows an image in a terminal: by Kitty's or iTerm2's protocol, else with half blocks in colors.

https://sw.kovidgoyal.net/kitty/graphics-protocol/ and https://iterm2.com/documentation-images.html
"""

from __future__ import annotations

import base64
import importlib
import io
import os
import shutil
import sys
from collections.abc import Mapping

KITTY_PIECE = 4096
"""Most characters of base64 in one sequence."""
MAX_COLUMNS = 64
"""Of a preview with half blocks."""
WAYS = ("auto", "kitty", "iterm2", "blocks", "none")


def find_way(environ: Mapping[str, str] = os.environ, *, on_terminal: bool | None = None) -> str:
    """Returns how this terminal shows an image, by what it says of itself; `none` where it cannot.

    Args:
        environ: The environment.
        on_terminal: Whether standard output is a terminal; None finds out.
    """
    if not (sys.stdout.isatty() if on_terminal is None else on_terminal):
        return "none"
    program = environ.get("TERM_PROGRAM", "")
    multiplexed = "TMUX" in environ or environ.get("TERM", "").startswith(("screen", "tmux"))
    if not multiplexed:  # a multiplexer keeps such sequences to itself
        if (
            "KITTY_WINDOW_ID" in environ
            or environ.get("TERM") in ("xterm-kitty", "xterm-ghostty")
            or program == "ghostty"
        ):
            return "kitty"
        if program in ("iTerm.app", "WezTerm") or environ.get("LC_TERMINAL") == "iTerm2":
            return "iterm2"
    return "blocks" if environ.get("COLORTERM") in ("truecolor", "24bit") else "none"


def render(data: bytes, way: str) -> str:
    """Returns what a terminal must be sent to show a PNG; empty where it cannot.

    Args:
        data: The file.
        way: One of `WAYS`, without `auto`.
    """
    if way == "kitty":
        return _kitty(data)
    if way == "iterm2":
        text = base64.b64encode(data).decode()
        return f"\x1b]1337;File=inline=1;size={len(data)};width=auto:{text}\x07\n"
    return _blocks(data) if way == "blocks" else ""


def _kitty(data: bytes) -> str:
    text = base64.b64encode(data).decode()
    pieces = [text[at : at + KITTY_PIECE] for at in range(0, len(text), KITTY_PIECE)]
    parts = []
    for number, piece in enumerate(pieces):
        first = "a=T,f=100," if number == 0 else ""
        parts.append(f"\x1b_G{first}m={int(number < len(pieces) - 1)};{piece}\x1b\\")
    return "".join(parts) + "\n"


def _blocks(data: bytes) -> str:
    """Returns two rows of pixels in each line of text; empty without Pillow."""
    try:
        pil = importlib.import_module("PIL.Image")
    except ImportError:
        return ""
    with pil.open(io.BytesIO(data)) as file:
        image = file.convert("RGB")
    size = shutil.get_terminal_size()
    columns = max(1, min(MAX_COLUMNS, size.columns - 1, image.width))
    lines = max(1, min(size.lines - 2, round(columns * image.height / image.width / 2)))
    columns = max(1, min(columns, round(lines * 2 * image.width / image.height)))
    pixels = image.resize((columns, lines * 2)).load()
    rows = []
    for y in range(0, lines * 2, 2):
        cells = (
            f"\x1b[38;2;{_color(pixels[x, y])};48;2;{_color(pixels[x, y + 1])}m▀"
            for x in range(columns)
        )
        rows.append("".join(cells) + "\x1b[0m\n")
    return "".join(rows)


def _color(pixel: tuple[int, int, int]) -> str:
    return ";".join(map(str, pixel))
