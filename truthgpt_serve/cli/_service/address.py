"""Where the service is: `TRUTHGPT_URL`, else what `make serve` runs here, else the default port."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import click

from truthgpt_serve.cluster.defaults import DEFAULT_URL, KEY_VARIABLE
from truthgpt_serve.cluster.service.run_file import RunFile

URL_VARIABLE = "TRUTHGPT_URL"
RUN_FOLDER = ".run"
_EXAMPLE = f"write it like {DEFAULT_URL}"


@dataclass(frozen=True, slots=True)
class Address:
    """Where the service is reached.

    Attributes:
        url: Scheme, host, port and path prefix, without a slash at the end.
        source: What named it, for messages.
        run_folder: The folder of `make serve` where it runs on this machine, else None.
    """

    url: str
    source: str
    run_folder: Path | None = None

    @property
    def shown(self) -> str:
        """The address without a user's name and password."""
        parts = urlsplit(self.url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()

    @property
    def is_loopback(self) -> bool:
        """Whether it is on this machine, so that no proxy stands in between."""
        host = urlsplit(self.url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"


def find_address(environ: Mapping[str, str] = os.environ) -> Address:
    """Returns the address of the service that the commands talk to.

    Raises:
        click.UsageError: `TRUTHGPT_URL` is no address.
    """
    local = find_local()
    if given := environ.get(URL_VARIABLE, "").strip():
        url = _check(given)
        folder = local.run_folder if local is not None and local.url == url else None
        return Address(url, URL_VARIABLE, folder)
    return local or Address(DEFAULT_URL, "the default")


def find_local() -> Address | None:
    """Returns the address of what `make serve` runs on this machine, or None."""
    for folder in dict.fromkeys((Path(RUN_FOLDER), root() / RUN_FOLDER)):
        try:
            state = RunFile(folder).read_running()
            if state is None:
                continue
            url = state.get("address") or f"http://127.0.0.1:{int(state['ports'][0])}"
            address = Address(_check(str(url)), f"{folder / 'serve.json'}", folder)
        except (AttributeError, KeyError, IndexError, TypeError, ValueError, click.UsageError):
            continue  # not a file of ours
        if address.is_loopback or _is_own(urlsplit(address.url).hostname or ""):
            return address
    return None


def _is_own(host: str) -> bool:
    """Returns whether a host name or address is one of this machine's."""
    try:
        found = {entry[0::4] for entry in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)}
        for family, where in found:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.bind(where)
    except (OSError, UnicodeError):
        return False
    return bool(found)


def root() -> Path:
    """Returns the folder of the checkout that this package is in."""
    return Path(__file__).resolve().parents[3]


def read_key(environ: Mapping[str, str] = os.environ) -> str | None:
    """Returns the API key, or None.

    Raises:
        click.UsageError: It has characters that no header can carry. The message does not show it.
    """
    key = environ.get(KEY_VARIABLE, "").strip()
    if not key:
        return None
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise click.UsageError(
            f"{KEY_VARIABLE} has spaces, line breaks or characters beyond ASCII: set the key alone"
        )
    return key


def _check(url: str) -> str:
    parts = _split(url)
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        shown = url.rpartition("@")[2][:100]  # without a password
        raise click.UsageError(f"{URL_VARIABLE} is {shown!r}, which is not an address: {_EXAMPLE}")
    if parts.query or parts.fragment:
        raise click.UsageError(f"{URL_VARIABLE} has more than an address in it: {_EXAMPLE}")
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return parts._replace(path=path).geturl()


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  raises for one that is no number
    except ValueError:
        return None
    return parts
