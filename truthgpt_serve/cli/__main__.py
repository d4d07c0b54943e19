"""`python -m truthgpt_serve.cli`: the command where no script is installed."""

from __future__ import annotations

from truthgpt_serve.cli.main import main

if __name__ == "__main__":
    main(prog_name="truthgpt")
