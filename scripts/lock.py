"""Writes constraints-cpu.txt: the exact packages of the environment that runs this.

Run it (`make lock`) in an environment whose tests pass.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import distributions
from pathlib import Path

TARGET = Path(__file__).resolve().parent.parent / "constraints-cpu.txt"
OWN = "truthgpt-serve"
# Whatever pip the machine has installs the rest; the project itself comes from the work tree.
LEFT_OUT = {OWN, "pip", "torchvision", "torchaudio", "torchcodec"}
HEADER = """\
# The exact packages that the tests ran with, on CPU: `make install` passes this file to pip as
# constraints, so that a fresh machine gets the same next month. A name here installs nothing by
# itself. To move versions: change pyproject.toml, `.venv/bin/pip install -U` what should move,
# `make lock`, then `make test`. A local version such as +cpu is left out, because package indexes
# differ in it; the engine itself asks for the right one.
"""


def main() -> None:
    """Writes the file and says how many packages it holds."""
    found: dict[str, str] = {}
    for distribution in distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
        if name not in LEFT_OUT:
            found[name] = distribution.version.partition("+")[0]
    lines = [f"{name}=={version}\n" for name, version in sorted(found.items())]
    TARGET.write_text(HEADER + "".join(lines))
    sys.stdout.write(f"[lock] {len(lines)} packages in {TARGET.name}\n")


if __name__ == "__main__":
    main()
