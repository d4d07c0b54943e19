"""Prints what pyproject.toml asks for, of the project and of the named extras; for the images.

So that their layers of packages do not depend on the product's own lines.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path


def read_requirements(pyproject: Path, extras: list[str]) -> list[str]:
    """Returns the requirements of the project and of these extras, each once.

    Raises:
        KeyError: There is no such extra.
    """
    with pyproject.open("rb") as file:
        project = tomllib.load(file)["project"]
    found = list(project["dependencies"])
    for extra in extras:
        for line in project["optional-dependencies"][extra]:
            inner = re.fullmatch(rf"{re.escape(project['name'])}\[([\w,-]+)\]", line)
            found += read_requirements(pyproject, inner[1].split(",")) if inner else [line]
    return list(dict.fromkeys(found))


def main() -> None:
    """Command line: `requirements.py [EXTRA]...`, beside pyproject.toml."""
    print("\n".join(read_requirements(Path("pyproject.toml"), sys.argv[1:])))


if __name__ == "__main__":
    main()
