"""Reads k8s/Dockerfile and says what is wrong with it; builds nothing, which needs Docker."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

HEALTH_TOOLS = ("bash", "grep", "wget")
"""What KubeRay's probes run inside the container."""
ENGINES = ("torch", "vllm", " cpu", " gpu", "images", "transformers")
MOUNT = re.compile(r"--mount=\S+\s+")
PRODUCT = ("truthgpt_serve", "deployments")
REFERENCE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
"""To an ARG in a FROM."""
PINNED = re.compile(
    r"(?P<image>[^:@\s]+(:\d+/[^:@\s]+)?)"
    r"(:[\w.-]*\d+\.\d+\.\d+[\w.-]*|(:[\w.-]+)?@sha256:[0-9a-f]{64})"
)
"""An image with an exact version or with a digest, beside which a tag is for readers."""
INSTRUCTIONS = ("FROM", "ARG", "RUN", "COPY", "ENV", "WORKDIR", "USER", "CMD")


@dataclass
class Stage:
    """One stage: what it starts from, and its instructions in order."""

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, instruction: str) -> list[str]:
        """Returns the arguments of every instruction of one kind."""
        return [argument for name, argument in self.instructions if name == instruction]


def read_stages(text: str) -> dict[str, Stage]:
    """Returns the stages of a Dockerfile by name, with defaults in place of arguments in FROM.

    Raises:
        ValueError: A line is no instruction that is known here or that may stand before the first
            FROM, or a FROM names an argument without a default.
    """
    joined = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.M))
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    arguments: dict[str, str] = {}
    for line in filter(None, map(str.strip, joined.splitlines())):
        name, _, argument = line.partition(" ")
        if name not in INSTRUCTIONS:
            raise ValueError(f"no instruction: {line[:60]}")
        if name == "FROM":
            words = argument.split()
            if len(words) != 3 or words[1].upper() != "AS":
                raise ValueError(f"a stage without a name: {line}")
            stage = stages[words[2]] = Stage(name=words[2], base=_base(words[0], arguments))
        elif stage is None and name == "ARG":
            key, _, default = argument.strip().partition("=")
            arguments[key] = default.strip("\"'")
        elif stage is None:
            raise ValueError(f"before the first FROM: {line[:60]}")
        else:
            stage.instructions.append((name, argument.strip()))
    return stages


def _base(text: str, arguments: dict[str, str]) -> str:
    """Returns what a FROM names, with the defaults of the arguments before the first FROM."""
    for braced, plain in REFERENCE.findall(text):
        if not arguments.get(braced or plain):
            raise ValueError(f"{text} has no default: ARG {braced or plain}=... before any FROM")
    return REFERENCE.sub(lambda match: arguments[match[1] or match[2]], text)


def dockerfile_faults(text: str, root: Path, targets: tuple[str, ...]) -> list[str]:
    """Returns what is wrong with a Dockerfile whose last stages are `targets`."""
    try:
        stages = read_stages(text)
    except ValueError as error:
        return [str(error)]
    faults = [f"no stage {name}" for name in targets if name not in stages]
    for stage in stages.values():
        faults += _base_faults(stage, stages)
        faults += _copy_faults(stage, stages, root)
        faults += _install_faults(stage, stages)
        faults += _layer_faults(stage, stages)
    for name in targets:
        if name in stages:
            faults += _target_faults(stages[name], stages)
    return faults


def lineage(stage: Stage, stages: dict[str, Stage]) -> Iterator[Stage]:
    """Yields a stage and those that it starts from."""
    yield stage
    if stage.base in stages:
        yield from lineage(stages[stage.base], stages)


def _base_faults(stage: Stage, stages: dict[str, Stage]) -> Iterator[str]:
    if stage.base in stages:
        return
    if not PINNED.fullmatch(stage.base):
        yield f"{stage.name}: {stage.base} is not pinned to an exact version"


def _copy_faults(stage: Stage, stages: dict[str, Stage], root: Path) -> Iterator[str]:
    for argument in stage.all("COPY"):
        words = shlex.split(argument)
        source_stage = [word.removeprefix("--from=") for word in words if word.startswith("--from")]
        sources = [word for word in words if not word.startswith("--")][:-1]
        if source_stage:
            if source_stage[0] not in stages:
                yield f"{stage.name}: there is no stage {source_stage[0]}"
            continue
        for source in sources:
            if not (root / source).exists():
                yield f"{stage.name}: {source} does not exist"


def _install_faults(stage: Stage, stages: dict[str, Stage]) -> Iterator[str]:
    for argument in stage.all("RUN"):
        yield from _mount_faults(stage, argument, stages)
        for command in re.split(r"&&|;", MOUNT.sub("", argument)):
            words = shlex.split(command)
            is_install = words[:2] == ["pip", "install"]
            if is_install and not {"-c", "--no-deps"} & set(words):
                yield f"{stage.name}: pip without constraints: {command.strip()[:60]}"
            if words[:2] == ["apt-get", "install"] and "--no-install-recommends" not in words:
                yield f"{stage.name}: apt-get without --no-install-recommends"
        if "apt-get install" in argument and "rm -rf /var/lib/apt/lists" not in argument:
            yield f"{stage.name}: apt's lists stay in the image"


def _mount_faults(stage: Stage, argument: str, stages: dict[str, Stage]) -> Iterator[str]:
    for name in re.findall(r"--mount=\S*?\bfrom=([\w-]+)", argument):
        if name not in stages:
            yield f"{stage.name}: there is no stage {name}"


def _layer_faults(stage: Stage, stages: dict[str, Stage]) -> Iterator[str]:
    """Packages are a layer of their own, which a changed line of the product leaves as it is."""
    copies = "\n".join(stage.all("COPY"))
    for name in re.findall(r"--from=(\S+) /opt/truthgpt/venv", copies):
        for copied in lineage(stages[name], stages) if name in stages else ():
            sources = {word for copy in copied.all("COPY") for word in copy.split()[:-1]}
            if sources & set(PRODUCT):
                yield f"{stage.name}: the layer of packages has the product in it"
    if "/opt/truthgpt/venv" in copies and "/wheels/*.whl" not in " ".join(stage.all("RUN")):
        yield f"{stage.name}: the product is missing"


def _target_faults(target: Stage, stages: dict[str, Stage]) -> Iterator[str]:
    family = list(lineage(target, stages))
    users = [user for stage in family for user in stage.all("USER")]
    if not users or not re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[0]):
        yield f"{target.name}: runs as {users[0] if users else 'root'}, not as a number above 0"
    installed = {word for stage in family for run in stage.all("RUN") for word in run.split()}
    for tool in HEALTH_TOOLS:
        if tool not in installed:
            yield f"{target.name}: {tool} is missing, which KubeRay's probes run"
    if (
        any(word in installed_in(target.name, stages) for word in ENGINES)
        and "g++" not in installed
    ):
        yield f"{target.name}: g++ is missing, which torch.compile runs"
    for command in target.all("CMD"):
        try:
            json.loads(command)
        except ValueError:
            yield f"{target.name}: CMD is not a list"


def installed_in(name: str, stages: dict[str, Stage]) -> str:
    """Returns every pip command whose result a stage has: its own, and of what it copies."""
    found = []
    for stage in lineage(stages[name], stages):
        found += [run for run in stage.all("RUN") if "requirements.py" in run]
        for copied in re.findall(r"--from=(\S+) /opt/truthgpt/venv", "\n".join(stage.all("COPY"))):
            found.append(installed_in(copied, stages) if copied in stages else "")
    return "\n".join(found)
