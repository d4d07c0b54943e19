"""Lets vLLM set up its log without closing the log handlers of the process around it.

`logging.config.dictConfig`, which vLLM calls, closes every handler of the process: those of Ray
Serve too, whose log of the replica would end there.
"""

from __future__ import annotations

import contextlib
import logging
import logging.config
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def added_log_settings() -> Iterator[None]:
    """Makes `dictConfig` add to the process's logging in this block, rather than replace it."""
    before = logging.config.dictConfigClass
    logging.config.dictConfigClass = _AddingConfigurator
    try:
        yield
    finally:
        logging.config.dictConfigClass = before


class _AddingConfigurator(logging.config.DictConfigurator):
    """Sets up what the settings name, and leaves all other loggers and handlers as they are."""

    def configure(self) -> None:
        """Applies the settings.

        Raises:
            ValueError: They are not valid.
        """
        if self.config.get("incremental", False):
            super().configure()
            return
        for section, make in (
            ("formatters", self.configure_formatter),
            ("filters", self.configure_filter),
            ("handlers", self.configure_handler),
        ):
            self._make_all(section, make)
        for name, settings in self.config.get("loggers", {}).items():
            self.configure_logger(name, settings)
        if root := self.config.get("root"):
            self.configure_root(root)

    def _make_all(self, section: str, make: Callable[[Any], Any]) -> None:
        parts = self.config.get(section, {})
        waiting = sorted(parts)
        while waiting:
            # A handler may name another one as its target, which must be there first.
            failed: dict[str, Exception] = {}
            for name in waiting:
                try:
                    parts[name] = made = make(parts[name])
                except Exception as error:
                    failed[name] = error
                else:
                    if isinstance(made, logging.Handler):
                        made.name = name
            if len(failed) == len(waiting):
                name, reason = next(iter(failed.items()))
                raise ValueError(f"cannot set up {section} {name!r}: {reason}") from reason
            waiting = list(failed)
