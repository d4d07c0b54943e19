"""The `auth` section: who may use the service, the same in every application's `args`."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import parse_qs, urlsplit

from pydantic import Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from truthgpt_serve.config.base import Refusal, Section, Text, refuse
from truthgpt_serve.config.variables import Expanded

NONE = "none"
"""What a file says in the place of the section: no keys, whoever reaches the service."""

MEMORY = "memory"
_STORES = ("redis://", "rediss://", "unix://")

PublicRoute = Literal["/metrics", "/docs", "/openapi.json", "/v1/files/images"]


def _has_written_password(store: Any) -> bool:
    """Whether the address of a store holds a password that comes from no variable."""
    if not isinstance(store, str) or not store.startswith(_STORES):
        return False
    try:
        parts = urlsplit(store.written if isinstance(store, Expanded) else store)
    except ValueError:
        return "@" in store
    passwords = [parts.password or "", *parse_qs(parts.query).get("password", [])]
    return any(one and "${" not in one for one in passwords)


class UsageSection(Section):
    """How what the keys use is kept ([usage](usage.md))."""

    file: Text | None = None
    """The SQLite file, on the head node; below the folder of the keys if it is not absolute. By
    default the one beside the keys, where that folder can be written, else one in
    `$XDG_STATE_HOME/truthgpt`."""

    keep_days: Annotated[int, Field(ge=1, le=4000)] = 400
    """Days after which it is dropped."""


class AuthSection(Section):
    """Who may use the service ([keys](keys.md)). `auth: none` lets everybody in who reaches it.

    Without the section the service asks for no keys, and starts only where it listens on this
    machine alone. Every application of the file needs the same one: write it once, as
    `auth: &auth {keys_file: keys.yaml}`, and `auth: *auth` in the others. `TRUTHGPT_KEYS_FILE`, a
    path or `none`, stands for the section in all of them.
    """

    keys_file: Text | None
    """File with the keys, which `truthgpt keys` writes; looked up as a model's file is. It must be
    there under the same path on every node, and changes count within 2 seconds."""

    public_routes: Annotated[list[PublicRoute], Field(max_length=4)] = Field(default_factory=list)
    """Routes that need no key, beside `/health` and `/ready`: `/metrics`, `/docs`, `/openapi.json`,
    `/v1/files/images`."""

    quota_store: Text = MEMORY
    """Where limits are counted: `memory`, each machine for itself, or the address of one Redis or
    Valkey server for all machines, such as `redis://redis:6379/0` (`rediss://` by TLS,
    `unix:///path`). A password is refused unless it comes by a variable: `${REDIS_URL}`.
    `TRUTHGPT_QUOTA_STORE` stands for it where it is not given."""

    usage: UsageSection = Field(default_factory=UsageSection)
    """How what the keys use is kept."""

    @model_validator(mode="after")
    def _check_store(self) -> AuthSection:
        # The value is not shown: it may hold a password.
        if self.quota_store != MEMORY and not self.quota_store.startswith(_STORES):
            message = "is neither memory nor an address of Redis"
            fix = f"write memory, or an address with {', '.join(_STORES)}"
            raise refuse([Refusal("quota_store", message, fix)])
        return self

    @model_validator(mode="before")
    @classmethod
    def _read_none(cls, data: Any) -> Any:
        if isinstance(data, str) and data == NONE:
            return {"keys_file": None}
        if isinstance(data, dict) and "keys_file" in data and data["keys_file"] is None:
            message, fix = "is empty", "name the file with the keys, or write auth: none"
            raise refuse([Refusal("keys_file", message, fix)])
        if isinstance(data, dict) and _has_written_password(data.get("quota_store")):
            message = "has its password written out, and Ray keeps a Serve file in its log"
            fix = "write ${REDIS_URL}, and set that variable where the service starts"
            raise refuse([Refusal("quota_store", message, fix)])
        return data

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Returns the schema of the section or the word `none`."""
        section = handler.resolve_ref_schema(handler(schema))
        section["properties"]["keys_file"] = {
            "type": "string",
            "minLength": 1,
            "title": "Keys File",
            "description": section["properties"]["keys_file"]["description"],
        }
        return {"anyOf": [{"const": NONE}, section]}


class AuthArgs(Section):
    """The part of a model's `args` that says who may use its address."""

    auth: AuthSection | None = None
    """Who may use it."""
