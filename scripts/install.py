"""Makes .venv and installs the project into it for the machine at hand, CPU or NVIDIA.

Needs nothing but Python; any version may start it.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from scripts.pip_progress import Progress, UvProgress, find_cause, run_pip
from scripts.uv_options import read_settings, translate

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOG = VENV / "install.log"
CONSTRAINTS = ROOT / "constraints-cpu.txt"
OLDEST = (3, 11)
NEWEST = (3, 13)
CPU_TORCH = "torch==2.13.0+cpu"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# From PyPI these are CUDA builds: beside a CPU torch their import fails, and transformers, which
# asks only whether they are installed, fails with them. They are optional for what is served here.
COMPANIONS = ("torchvision", "torchaudio", "torchcodec")


def say(text: str) -> None:
    """Prints one line at once, also into a pipe."""
    print(f"[install] {text}", flush=True)


def is_usable(python: str, *, check: bool = False) -> bool:
    """Tells whether this interpreter runs and has a version that the packages are built for.

    Raises:
        subprocess.TimeoutExpired: It did not say so in time, if `check` is set.
    """
    code = f"import sys, venv; sys.exit(not {OLDEST} <= sys.version_info[:2] <= {NEWEST})"
    try:
        return subprocess.run([python, "-c", code], capture_output=True, timeout=30).returncode == 0
    except OSError:
        return False
    except subprocess.TimeoutExpired:
        if check:
            raise
        return False


def find_python() -> str:
    """Returns an interpreter to build the environment with."""
    names = [f"python3.{minor}" for minor in range(OLDEST[1], NEWEST[1] + 1)]
    found = [shutil.which(name) for name in names]
    for python in [sys.executable, *filter(None, found)]:
        if is_usable(python):
            return python
    sys.exit(
        f"[install] no Python from {OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]} was found "
        f"(this one is {sys.version.split()[0]}): install python3.11 and python3.11-venv"
    )


def detect_accelerator() -> str:
    """Returns `gpu` or `cpu`: what TRUTHGPT_ACCELERATOR says, else whether nvidia-smi works."""
    wanted = os.environ.get("TRUTHGPT_ACCELERATOR", "")
    if wanted in ("cpu", "gpu"):
        return wanted
    if wanted:
        sys.exit(f"[install] TRUTHGPT_ACCELERATOR is {wanted!r}: write cpu or gpu, or unset it")
    try:
        probe = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return "cpu"
    return "gpu" if probe.returncode == 0 and "GPU" in probe.stdout else "cpu"


def stamp_for(extras: str) -> Path:
    """Returns the file that says: this environment holds exactly what is asked for now."""
    digest = hashlib.sha256(f"{extras}\0{ROOT}\0{os.path.realpath(PYTHON)}".encode())
    for source in (ROOT / "pyproject.toml", CONSTRAINTS, Path(__file__)):
        digest.update(source.read_bytes())
    return VENV / f".truthgpt-{digest.hexdigest()[:16]}"


def pip(*arguments: str, check: bool = True) -> bool:
    """Runs pip in the environment; returns whether it succeeded."""
    command = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", *arguments]
    (site,) = VENV.glob("lib/python3*/site-packages")
    pins = sum(line[:1].isalnum() for line in CONSTRAINTS.read_text().splitlines())
    progress = Progress(site, pins if "-c" in arguments else 0)
    status = run_pip(command, ROOT, progress, LOG)
    if status == 0 or not check:
        return status == 0
    say(f"failed: pip {' '.join(arguments)}")
    for line in find_cause(progress.lines):
        print(f"    {line[:300]}")
    say(f"all that pip said: {LOG}")
    sys.exit("[install] `make install` goes on from here")


def uv(*arguments: str) -> bool:
    """Runs `uv pip` in the environment, under pip's settings; returns whether it succeeded.

    It installs some 300 packages in a quarter of pip's time.
    """
    if not pip("install", "-c", str(CONSTRAINTS), "uv", check=False):
        return False
    command = [str(PYTHON), "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if (translated := translate(read_settings(listed.stdout.splitlines()))) is None:
        say("pip has settings that uv does not know: pip installs")
        return False
    options, variables = translated
    progress = UvProgress()
    command = [str(PYTHON), "-m", "uv", "pip", *arguments, "--python", str(PYTHON), *options]
    if run_pip(command, ROOT, progress, LOG, variables) == 0:
        return True
    say("uv could not install the packages, so pip tries:")
    for line in find_cause(progress.lines):
        print(f"    {line[:300]}")
    return False


def make_environment() -> None:
    """Creates .venv unless a working one is there, and keeps one that only answers slowly."""
    try:
        if is_usable(str(PYTHON), check=True):
            return
    except subprocess.TimeoutExpired:
        sys.exit(f"[install] {PYTHON} did not start within 30 s: try again on a less busy machine")
    python = find_python()
    say(f"making .venv with {python}")
    done = subprocess.run([python, "-m", "venv", "--clear", str(VENV)], check=False)
    if done.returncode != 0:
        sys.exit("[install] cannot make .venv: on Debian, install python3-venv")


def read_extras(extras: str) -> list[str]:
    """Returns the requirements of the project with these extras, as pyproject.toml has them."""
    import tomllib

    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    found: list[str] = list(project["dependencies"])
    for extra in extras.split(","):
        found += project["optional-dependencies"][extra]
    return found


def is_complete(extras: str) -> bool:
    """Tells whether this interpreter's packages are all that the project asks for.

    Run by .venv's Python, so that a change to pyproject.toml that needs no package, or only one
    that is there, needs no network.
    """
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return False
    limits = {}
    if "cpu" in extras.split(","):
        pins = [line.strip().split("==") for line in CONSTRAINTS.read_text().splitlines()]
        limits = {pin[0]: pin[1] for pin in pins if len(pin) == 2 and pin[0][0] != "#"}
    queue = [(Requirement(text), "") for text in read_extras(extras)]
    seen: set[tuple[str, str]] = set()
    while queue:
        requirement, extra = queue.pop()
        if requirement.name in COMPANIONS or (str(requirement), extra) in seen:
            continue
        seen.add((str(requirement), extra))
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        try:
            found = distribution(requirement.name)
        except PackageNotFoundError:
            return False
        limit = limits.get(re.sub(r"[-_.]+", "-", requirement.name).lower())
        if limit is not None and found.version.partition("+")[0] != limit:
            return False
        if not requirement.specifier.contains(found.version, prereleases=True):
            return False
        for further in found.requires or []:
            queue += [(Requirement(further), name) for name in ("", *requirement.extras)]
    return True


def has_all(extras: str) -> bool:
    """Asks .venv's own Python whether it has all packages."""
    command = [str(PYTHON), "-m", "scripts.install", "--is-complete", extras]
    return subprocess.run(command, capture_output=True, check=False, cwd=ROOT).returncode == 0


def cpu_index() -> list[str]:
    """Returns the pip options under which a CPU torch is found.

    The engine asks for the `+cpu` build by name, so a CUDA build of several GB is never taken.
    """
    if pip("download", "--no-deps", "--dest", str(VENV / "wheels"), CPU_TORCH, check=False):
        return ["--find-links", str(VENV / "wheels")]
    say(f"your package index has no {CPU_TORCH}: adding {CPU_INDEX}")
    return ["--extra-index-url", CPU_INDEX]


def install(accelerator: str, extras: str) -> None:
    """Installs the engine, the project and what it needs."""
    if has_all(extras):
        say("all packages are there: installing only the project itself")
        pip("install", "--no-build-isolation", "--no-deps", "-e", str(ROOT))
        return
    size = "about 3 GB" if accelerator == "cpu" else "several GB"
    say(f"installing for {accelerator}: truthgpt-serve[{extras}]")
    say(f"{size} and some minutes, once; all that pip says: {LOG}")
    limits = []
    options = []
    if accelerator == "cpu":
        limits = ["-c", str(CONSTRAINTS)]
        options = cpu_index()
    # The project is built in this environment, so that nothing is downloaded for it again.
    pip("install", *limits, "setuptools>=77")
    target = f"{ROOT}[{extras}]"
    arguments = ["--no-build-isolation", *limits, *options, "-e", target]
    if not uv("install", *arguments):
        pip("install", "--no-compile", *arguments)
    shutil.rmtree(VENV / "wheels", ignore_errors=True)
    if accelerator == "cpu":
        remove_broken_companions()
    compile_packages()


def compile_packages() -> None:
    """Compiles what was installed with all cores; pip takes one, and a third of its time for it.

    Files for other versions of Python do not compile, and nobody imports them, nor the packages'
    own tests.
    """
    say("compiling the packages")
    site = [str(path) for path in VENV.glob("lib/python3*/site-packages")]
    command = [str(PYTHON), "-m", "compileall", "-qq", "-j", "0", "-x", "/tests?/", *site]
    subprocess.run(command, capture_output=True, check=False)


def remove_broken_companions() -> None:
    """Removes torch's companion packages that do not work beside the CPU torch."""
    for name in COMPANIONS:
        code = (
            "import importlib.util, sys\n"
            f"if importlib.util.find_spec({name!r}) is None: sys.exit(0)\n"
            f"import {name}"
        )
        probe = subprocess.run([str(PYTHON), "-c", code], capture_output=True, check=False)
        if probe.returncode != 0:
            say(f"removing {name}: it is a CUDA build and cannot be imported beside a CPU torch")
            pip("uninstall", "--yes", name)


def main() -> None:
    """Command line: `python3 -m scripts.install [--extras dev,images,...]`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--extras",
        default="audio,dev,docs,images,onnx,redis,train,transformers,ui",
        help="further extras, separated by commas",
    )
    parser.add_argument("--accelerator", choices=("cpu", "gpu"), help="instead of looking")
    parser.add_argument("--is-complete", metavar="EXTRAS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.is_complete:
        sys.exit(0 if is_complete(options.is_complete) else 1)
    started = time.monotonic()
    with open(ROOT / ".install.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second one waits, and then finds the stamp
        accelerator = options.accelerator or detect_accelerator()
        extras = ",".join(sorted({accelerator, *filter(None, options.extras.split(","))}))
        if PYTHON.exists() and stamp_for(extras).exists():
            return
        make_environment()
        LOG.unlink(missing_ok=True)
        install(accelerator, extras)
        for old in VENV.glob(".truthgpt-*"):
            old.unlink()
        stamp_for(extras).touch()
    say(f"done in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\n[install] stopped: `make install` goes on from here")
