"""Settings, checks and registry entry of the family `remote`; imports no HTTP client."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from deployments.remote.address import find_url_fault, has_dot_segments
from deployments.remote.headers import WRITTEN_HERE, find_header_fault
from truthgpt_serve.config.base import Count, Refusal, Seconds, Section, Text, refuse
from truthgpt_serve.contract import FamilySpec
from truthgpt_serve.errors import Fault

DEFAULT_ONGOING_REQUESTS = 64
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,127}")
_LIKE_A_KEY = re.compile(r"(?=[^_]*\d)[A-Z0-9]{16,}")
"""Long, with digits and without an underscore: more likely a key than the name of a variable."""
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def _refused(message: str) -> PydanticCustomError:
    return PydanticCustomError("remote_setting", "{message}", {"message": message})


def _check_variable(value: Any) -> Any:
    """Refuses what is no variable's name without showing it: it may be the key itself."""
    if value is None:
        return None
    name = value if isinstance(value, str) else ""
    if not _VARIABLE.fullmatch(name) or _LIKE_A_KEY.fullmatch(name):
        raise _refused(
            "must be the name of an environment variable, in capital letters, digits and "
            "underscores, not the key itself (write a name such as OPENAI_API_KEY, and set the "
            "variable to the key)"
        )
    return name


def _check_headers(value: Any) -> Any:
    """Checks names and values; a message shows no value, as it may be a secret."""
    if not isinstance(value, Mapping):
        raise _refused("must be a mapping of header names to texts")
    for name, text in value.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise _refused(f"{name!r} must be text with a text as its value (put both in quotes)")
        fault = find_header_fault(name, text)
        if fault is not None:
            fix = " (use api_key_env and api_key_header)" if "credential" in fault else ""
            raise _refused(f"{name[:60]!r} {fault}{fix}")
    return value


def _check_key_header(value: str) -> str:
    if not _TOKEN.fullmatch(value) or value.lower().encode() in WRITTEN_HERE:
        raise _refused(f"{value[:60]!r} is not a header that can carry a key (write authorization)")
    return value.lower()


def _check_path(value: str) -> str:
    if not value.startswith("/") or re.search(r"[^!-~]|[?#]", value) or has_dot_segments(value):
        raise _refused(f"must be a path that begins with a slash, not {value[:60]!r}")
    return value


Path = Annotated[Text, AfterValidator(_check_path)]


class RemoteSettings(Section):
    """What `serving.engine` may say for `family: remote`."""

    model_config = ConfigDict(hide_input_in_errors=True)  # a value may be a key in a wrong place

    model: Text | None = None
    """Model name on the remote server, put in the place of this application's. Null takes the
    application's own name if the remote server lists it, else the only one that it lists, else the
    application's name."""

    api_key_env: Annotated[str | None, BeforeValidator(_check_variable)] = None
    """Name of the environment variable that holds the remote server's key; it must be set where the
    replica runs. Null sends none."""

    api_key_header: Annotated[Text, AfterValidator(_check_key_header)] = "authorization"
    """Header that carries the key: in `authorization` it stands behind `Bearer`, in any other, such
    as `api-key` or `x-api-key`, alone."""

    headers: Annotated[dict[str, str], BeforeValidator(_check_headers)] = Field(
        default_factory=dict
    )
    """Headers added to each request, instead of the client's of the same name. No secrets: the
    file is not one."""

    paths: list[Path] | None = None
    """Paths that are relayed, as clients write them, each with all below it, such as
    `/v1/chat/completions`; others are answered 404. Null relays every path: then whoever reaches
    this application can do on the remote server what its key allows."""

    infer_with: Literal["chat", "completion"] = "chat"
    """Route behind `infer` for texts: `chat` makes the text a user's message, `completion` has it
    continued, which not every server offers."""

    request_timeout_s: Seconds | None = None
    """Longest time for one request in seconds, its stream included; null means
    `serving.max_request_s`, which bounds it in any case."""

    connect_timeout_s: Seconds = 10
    """Seconds to open a connection, TLS included. More waits longer for a server that is gone."""

    read_timeout_s: Seconds = 300
    """Longest pause in seconds between two pieces of an answer, and before its first. An answer
    that is not streamed comes in one piece at its end, so less than its time cuts it off."""

    health_path: Path | None = "/v1/models"
    """Path that is asked by GET to see whether the remote server answers, as clients write it:
    `/v1/models` is `/models` under the base URL, `/health` is beside its `/v1`. Null never asks:
    every request is then sent, whatever became of those before."""

    health_period_s: Seconds = 10
    """Seconds between two such questions of each replica; at most 2 while they fail. More notices
    later and costs the remote server less."""

    health_timeout_s: Seconds = 5
    """Seconds that the answer may take."""

    down_after_s: Seconds = 15
    """Seconds for which nothing but failures came before requests are answered 503 without being
    sent. More tries longer, and clients wait for errors."""

    max_connections: Count = 256
    """Most connections of one replica to the remote server, one for each ongoing request."""

    verify_tls: bool = True
    """Check the remote server's certificate. Without it anybody between can read the key."""

    ca_file: Text | None = None
    """File with the certificates (PEM) that may have signed the remote server's, where the replica
    runs. Null takes the system's."""

    @model_validator(mode="after")
    def _check_tls(self) -> RemoteSettings:
        if self.ca_file is not None and not self.verify_tls:
            message = "has no effect with verify_tls: false"
            raise refuse([Refusal("ca_file", message, "remove one of them", ("verify_tls",))])
        return self


def check_config(cfg: Mapping[str, Any]) -> list[Fault]:
    """Returns the faults between sections; their places are dotted paths."""
    return [*check_server(cfg), *_check_hardware(cfg)]


def check_server(cfg: Mapping[str, Any]) -> list[Fault]:
    """Returns the faults that leave no server to relay to, or too few connections.

    `hardware` is not among them: where a replica loads, `gpus: auto` has become a number.
    """
    return [*_check_url(cfg), *_check_connections(cfg)]


def _check_url(cfg: Mapping[str, Any]) -> list[Fault]:
    url, engine = cfg["model"]["name_or_path"], cfg["serving"]["engine"]
    fault = find_url_fault(url)
    if fault is not None:
        return [Fault("model.name_or_path", *fault)]
    if str(url).lower().startswith("https:"):
        return []
    return [
        Fault(
            f"serving.engine.{key}", "has no effect with an http URL", "write https, or remove it"
        )
        for key, default in (("ca_file", None), ("verify_tls", True))
        if engine.get(key, default) != default
    ]


def _check_connections(cfg: Mapping[str, Any]) -> list[Fault]:
    ongoing, most = cfg["serving"]["max_ongoing_requests"], max_connections(cfg)
    if ongoing is None or ongoing <= most:
        return []
    message = f"{ongoing} is more than serving.engine.max_connections, which is {most}"
    return [Fault("serving.max_ongoing_requests", message, "lower it, or raise max_connections")]


def _check_hardware(cfg: Mapping[str, Any]) -> list[Fault]:
    gpus = cfg["hardware"]["gpus"]
    if not isinstance(gpus, (int, float)) or gpus == 0:
        return []
    message = f"{gpus:g} would be reserved for nothing: the remote server computes"
    return [Fault("hardware.gpus", message, "write 0")]


def max_connections(cfg: Mapping[str, Any]) -> int:
    """Returns the most connections of one replica."""
    default = RemoteSettings.model_fields["max_connections"].default
    return int(cfg["serving"]["engine"].get("max_connections", default))


def default_ongoing_requests(cfg: Mapping[str, Any]) -> int:
    """Returns how many requests one replica works on: no more than it may open connections."""
    return min(DEFAULT_ONGOING_REQUESTS, max_connections(cfg))


FAMILY = FamilySpec(
    name="remote",
    class_path="deployments.remote.deployment:RemoteModel",
    tasks=("text-generation", "embedding", "image-generation", "custom"),
    engine_config=RemoteSettings,
    on_event_loop=True,
    uses_gpus=False,
    max_ongoing_requests=default_ongoing_requests,
    check=check_config,
)
