"""The lines of the configuration that Ray Serve writes for HAProxy: sections, and more in them."""

from __future__ import annotations

CLIENTS = "frontend http_frontend"
ROUTERS = "frontend router_frontend"
DEFAULT_BACKEND = "backend default_backend"


class UnknownConfigurationError(ValueError):
    """Ray writes HAProxy's configuration otherwise than these modules know it."""


def section(lines: list[str], header: str) -> tuple[int, int]:
    """Returns where a section's lines begin, behind its header, and where they end.

    Raises:
        UnknownConfigurationError: There is none.
    """
    if header not in lines:
        raise UnknownConfigurationError(f"there is no section `{header}`")
    start = lines.index(header) + 1
    at = range(start, len(lines))
    return start, next((i for i in at if lines[i][:1] not in ("", " ", "\t")), len(lines))


def insert(lines: list[str], header: str, *more: str) -> None:
    """Puts lines at the beginning of a section."""
    start, _ = section(lines, header)
    lines[start:start] = [f"    {line}" for line in more]


def use_first(lines: list[str], frontend: str, rule: str) -> None:
    """Puts a rule `use_backend` before all others of a frontend."""
    start, end = section(lines, frontend)
    uses = (at for at in range(start, end) if lines[at].lstrip().startswith("use_backend "))
    lines.insert(next(uses, end), f"    {rule}")
