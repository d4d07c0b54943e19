"""vLLM's way to set up its log leaves the process's other handlers open."""

from __future__ import annotations

import logging
import logging.config
import logging.handlers
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deployments.vllm.logs import added_log_settings

SETTINGS: dict[str, Any] = {
    "version": 1,
    "formatters": {"plain": {"format": "engine: %(message)s"}},
    "handlers": {
        "a buffer": {
            "class": "logging.handlers.MemoryHandler",
            "capacity": 1,
            "target": "the file",
        },
        "the file": {"class": "logging.FileHandler", "formatter": "plain"},
    },
    "loggers": {"engine": {"handlers": ["a buffer"], "level": "INFO", "propagate": False}},
}


@pytest.fixture
def service_log(tmp_path: Path) -> Iterator[Path]:
    """A log as Ray Serve keeps it: a buffer in front of a file."""
    path = tmp_path / "service.log"
    file = logging.handlers.RotatingFileHandler(path)
    buffer = logging.handlers.MemoryHandler(1, target=file)
    logger = logging.getLogger("service")
    logger.setLevel(logging.INFO)
    logger.addHandler(buffer)
    yield path
    for name in ("service", "engine"):
        drop_handlers(name)


def drop_handlers(name: str) -> None:
    for handler in list(logging.getLogger(name).handlers):
        if isinstance(handler, logging.handlers.MemoryHandler):
            logging.getLogger(name).removeHandler(handler)
            target = handler.target
            handler.close()
            assert target is not None
            target.close()


def settings(path: Path) -> dict[str, Any]:
    handlers = SETTINGS["handlers"]
    file = {**handlers["the file"], "filename": str(path)}
    # `dictConfig` changes what it is given.
    parts = {"handlers": {"a buffer": dict(handlers["a buffer"]), "the file": file}}
    loggers = {"engine": dict(SETTINGS["loggers"]["engine"])}
    formatters = {"plain": dict(SETTINGS["formatters"]["plain"])}
    return {**SETTINGS, **parts, "loggers": loggers, "formatters": formatters}


def test_other_handlers_stay_open_and_the_settings_apply(service_log: Path, tmp_path: Path) -> None:
    with added_log_settings():
        logging.config.dictConfig(settings(tmp_path / "engine.log"))
    logging.getLogger("engine").info("one")
    logging.getLogger("service").info("two")
    assert (tmp_path / "engine.log").read_text() == "engine: one\n"
    assert service_log.read_text() == "two\n"
    (handler,) = logging.getLogger("service").handlers
    assert isinstance(handler, logging.handlers.MemoryHandler)
    assert isinstance(handler.target, logging.FileHandler)  # what Serve's controller asks for
    assert not logging.getLogger("service").disabled


def test_what_cannot_be_set_up_is_named() -> None:
    wrong = {"version": 1, "handlers": {"broken": {"class": "no.such.Handler"}}}
    with added_log_settings(), pytest.raises(ValueError, match="handlers 'broken'"):
        logging.config.dictConfig(wrong)


def test_only_the_block_is_changed() -> None:
    before = logging.config.dictConfigClass
    with added_log_settings():
        assert logging.config.dictConfigClass is not before
    assert logging.config.dictConfigClass is before
