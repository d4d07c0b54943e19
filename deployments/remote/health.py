"""Whether the remote server answers, and which model is meant there; asks it now and then.

A replica stays when the remote server is down, because another replica would find the same. Instead
requests are refused at once, and each learns when to come back.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import time
from typing import Any

from deployments.remote.config import RemoteSettings
from deployments.remote.engine import Answer, Remote
from deployments.remote.headers import RequestHeaders
from truthgpt_serve.errors import DeadlineError, TruthGPTError, UnavailableError, UpstreamError

logger = logging.getLogger(__name__)

FAILING_PERIOD_S = 2.0
"""Longest time between two questions while they fail, so that a server that is back is used."""
MAX_LIST_BYTES = 8 * 1024 * 1024
LIST_PATH = "/v1/models"
_NO_LIST = frozenset((404, 405, 501))
"""Answers of a server that does not list its models, and never will."""
REFUSALS = frozenset((401, 403, 407))
"""Answers by which the remote server refuses this application, not its client."""


class Monitor:
    """Follows one remote server.

    Args:
        remote: The server; entered while `check` and `find_model` run.
        headers: Makes the headers of the questions.
        settings: Where and how often to ask.
        name: The model name that clients send.

    Attributes:
        is_down: Whether nothing but failures came for `down_after_s`; never without a
            `health_path`, as nothing would notice that it is over.
    """

    def __init__(
        self, remote: Remote, headers: RequestHeaders, settings: RemoteSettings, name: str
    ) -> None:
        self._remote = remote
        self._headers = headers
        self._settings = settings
        self._name = name
        self._model = settings.model
        self._finding = asyncio.Lock()
        self._failing_since_s: float | None = None
        self._reason = ""
        self._answered = False
        self.is_down = False

    # -- what is known

    def refuse_if_down(self) -> None:
        """Raises UnavailableError while the remote server is down."""
        if self.is_down:
            raise UnavailableError(
                f"{self._remote.label} is down: {self._reason}",
                retry_after_s=math.ceil(self._period_s()),
            )

    def describe(self) -> dict[str, Any]:
        """Returns what the model's card says of the remote server."""
        if self._failing_since_s is None:
            return {"status": "up" if self._answered else "unknown"}
        return {
            "status": "down" if self.is_down else "failing",
            "reason": self._reason,
            "failing_for_s": round(time.monotonic() - self._failing_since_s, 1),
        }

    # -- what happens

    def succeeded(self) -> None:
        """Notes that the remote server answered."""
        if self.is_down:
            logger.warning("%s answers again", self._remote.label)
        self._failing_since_s, self._reason, self._answered = None, "", True
        self.is_down = False

    def failed(self, reason: str) -> None:
        """Notes that it did not."""
        self._reason = reason.removeprefix(f"{self._remote.label} ")
        now_s, settings = time.monotonic(), self._settings
        if self._failing_since_s is None:
            self._failing_since_s = now_s
        is_long = now_s - self._failing_since_s >= settings.down_after_s
        if is_long and settings.health_path is not None and not self.is_down:
            self.is_down = True
            where = self._remote.addresses.origin
            logger.warning("%s at %s is down: %s", self._remote.label, where, self._reason)

    # -- asking

    async def run(self) -> None:
        """Asks for ever."""
        while True:
            await asyncio.sleep(self._period_s())
            await self.check()

    def _period_s(self) -> float:
        period_s = self._settings.health_period_s
        return period_s if self._failing_since_s is None else min(period_s, FAILING_PERIOD_S)

    async def check(self) -> None:
        """Asks once; never raises."""
        path = self._settings.health_path
        if path is None:
            return
        limit_s = self._settings.health_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                status, body = await self.get(path)
        except TimeoutError:
            self.failed(f"{self._remote.label} did not answer {path} within {limit_s:g} s")
        except TruthGPTError as error:
            self.failed(error.message)
        else:
            self._judge(path, status, body)

    def _judge(self, path: str, status: int, body: bytes) -> None:
        if status >= 500 or 300 <= status < 400:
            self.failed(f"{self._remote.label} answers {path} with status {status}")
            return
        if status in REFUSALS and not self._answered:
            logger.warning("%s refuses the key: status %d", self._remote.label, status)
        self.succeeded()
        if path == LIST_PATH and status == 200 and self._settings.model is None:
            self._model = self._choose(body)

    async def get(self, path: str) -> tuple[int, bytes]:
        """Returns status and body of a page of the server's, as the service itself asks for it.

        Raises:
            TruthGPTError: The remote server does not answer.
        """
        answer: Answer | None = None
        try:
            url, headers = self._remote.addresses.of(path), self._headers.build([], _new_id())
            answer = await self._remote.send("GET", url, headers)
            return answer.status, await answer.read_all(MAX_LIST_BYTES)
        finally:
            if answer is not None:
                answer.close()

    async def find_model(self) -> str:
        """Returns the model's name on the remote server, asking for it the first time.

        Raises:
            TruthGPTError: The remote server does not answer.
        """
        if self._model is not None:
            return self._model
        async with self._finding:
            if self._model is None:
                status, body = await self._get_list()
                if status == 200:
                    self._model = self._choose(body)
                elif status in _NO_LIST:
                    self._model = self._name
        return self._model or self._name

    async def _get_list(self) -> tuple[int, bytes]:
        limit_s = self._settings.health_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                return await self.get(LIST_PATH)
        except TimeoutError:
            message = f"{self._remote.label} did not list its models within {limit_s:g} s"
            self.failed(message)
            raise DeadlineError(message) from None
        except UpstreamError as error:
            self.failed(error.message)
            raise

    def _choose(self, body: bytes) -> str:
        try:
            names = [str(entry["id"]) for entry in json.loads(body)["data"]]
        except (ValueError, LookupError, TypeError, RecursionError):
            names = []
        model = names[0] if len(names) == 1 and self._name not in names else self._name
        if model != self._model:
            logger.info("%s: %r is %r there", self._remote.label, self._name, model)
        return model


def _new_id() -> str:
    return os.urandom(16).hex()
