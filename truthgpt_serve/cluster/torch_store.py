"""Keeps the meeting place of processes that compute together to the address that it names.

torch lets its `TCPStore` listen on every address of the machine, and whoever connects may read and
write it. Called where torch is; imports it by name.
"""

from __future__ import annotations

import importlib
import socket
from typing import Any


def listen_on_named_address() -> None:
    """Gives each store that this process will open a socket on the store's own address.

    Raises:
        RuntimeError: torch opens it otherwise than release 2.13 does.
    """
    rendezvous: Any = importlib.import_module("torch.distributed.rendezvous")
    original = getattr(rendezvous, "TCPStore", None)
    if getattr(original, "__module__", "") == __name__:
        return
    if not callable(original):
        raise RuntimeError(
            "torch.distributed.rendezvous.TCPStore is gone: adapt "
            "truthgpt_serve/cluster/torch_store.py to this version of torch "
            "(2.13.0 is the one it was written for)"
        )

    def open_store(*, host_name: str, port: int, is_master: bool, **options: Any) -> Any:
        if is_master:
            # The store closes it.
            options["master_listen_fd"] = _listen(host_name, port).detach()
        return original(host_name=host_name, port=port, is_master=is_master, **options)

    rendezvous.TCPStore = open_store


def _listen(host: str, port: int) -> socket.socket:
    address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    return socket.create_server(address[4][:2], family=address[0], backlog=128)
