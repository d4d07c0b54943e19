"""Makes the environments of the client programs, outside the product's."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from scripts.frameworks.programs import Program

CLIENTS = Path(__file__).resolve().parent / "clients"
INSTALL_S = 1200


def prepare(program: Program, work: Path) -> list[str]:
    """Installs what a program needs, unless that was done before; returns its command.

    Args:
        program: The program.
        work: The folder of all environments.

    Raises:
        RuntimeError: A package cannot be installed, or Node is missing.
    """
    wanted = hashlib.sha256(repr(program).encode()).hexdigest()
    folder = work / program.name
    stamp = folder / "installed"
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        (_install_node if program.is_node else _install_python)(program, folder)
        stamp.write_text(wanted)
    if program.is_node:
        # A module finds its packages beside itself.
        copied = shutil.copy(CLIENTS / program.file, folder / program.file)
        return ["node", str(copied)]
    return [str(folder / "bin" / "python"), str(CLIENTS / program.file)]


def _install_node(program: Program, folder: Path) -> None:
    if shutil.which("npm") is None:
        raise RuntimeError("npm is missing: install Node 20 or newer")
    folder.mkdir(parents=True)
    (folder / "package.json").write_text("{}")
    _run(["npm", "install", "--silent", *program.packages], folder)


def _install_python(program: Program, folder: Path) -> None:
    """Makes a virtual environment; uv finds versions that fit each other in seconds."""
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    if program.sees_product:
        site = folder / "lib" / Path(sysconfig.get_path("purelib")).parent.name / "site-packages"
        (site / "product.pth").write_text(sysconfig.get_path("purelib"))
        _run([python, "-m", "pip", "install", "--quiet", *program.packages], folder)
        return
    _run([python, "-m", "pip", "install", "--quiet", "uv"], folder)
    uv = [python, "-m", "uv", "pip", "install", "--quiet", "--python", python]
    _run([*uv, *program.packages], folder)


def _run(command: list[str], folder: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=INSTALL_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}")
    if done.stdout.strip():
        print(done.stdout.strip()[-500:], file=sys.stderr)
