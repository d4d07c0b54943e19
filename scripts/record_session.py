"""Records a terminal session for the documentation: `python -m scripts.record_session`.

Starts the service that ships, types commands into a shell, and writes what appeared to
docs/session.md. Nothing is edited but the folder's path.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "session.md"
START_S = 600
COMMAND_S = 120
READY = "ends the service"
COMMANDS = (
    ".venv/bin/truthgpt models",
    '.venv/bin/truthgpt chat story --prompt "Tell me a story about Mia and a red boat."',
    '.venv/bin/truthgpt image shapes "a big red star in the top left" --seed 1 --out star.png',
    "curl -sS http://127.0.0.1:8000/v1/embeddings -H 'content-type: application/json' "
    """-d '{"model": "shapes", "input": "a star"}'""",
    '.venv/bin/truthgpt chat stori --prompt "hello"',
    "make stop",
)
HEAD = """\
# A session

What a terminal shows from the first command on, recorded by `python -m scripts.record_session` on
two cores without a GPU, where the packages were installed already. Two requests are wrong on
purpose: an image model has no embeddings, and no model is called `stori`.

"""
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


def read_ready(service: subprocess.Popen[str]) -> str:
    """Returns what the service printed until it was ready."""
    assert service.stdout is not None
    lines = []
    deadline = time.monotonic() + START_S
    for line in service.stdout:
        lines.append(line)
        if READY in line:
            return "".join(lines)
        if time.monotonic() > deadline:
            break
    raise SystemExit("the service did not become ready:\n" + "".join(lines))


def run(command: str) -> str:
    """Returns what a command prints."""
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL, text=True, timeout=COMMAND_S, check=False,
    )  # fmt: skip
    return done.stdout


def block(command: str, output: str) -> str:
    """Returns a command and its output as a block of the page."""
    text = _CONTROL.sub("", output).replace(str(ROOT), "~/truthgpt-serve").rstrip()
    return f"```console\n$ {command}\n{text}\n```\n"


def main() -> None:
    """Records the session."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    environment = {**os.environ, "COLUMNS": "100"}
    service = subprocess.Popen(
        ["make", "serve"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL, text=True, env=environment,
    )  # fmt: skip
    try:
        blocks = [block("make serve", read_ready(service))]
        blocks += [block(command, run(command)) for command in COMMANDS]
    finally:
        if service.poll() is None:
            service.terminate()
        service.wait(START_S)
    options.page.write_text(HEAD + "\n".join(blocks))


if __name__ == "__main__":
    main()
