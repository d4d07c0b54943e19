"""Lines that Ray Serve's log could not take, through a handler like its own."""

from __future__ import annotations

import logging
import logging.handlers
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from truthgpt_serve.telemetry.log_lines import MAX_LINE_CHARS, mend_lines


@pytest.fixture
def logger(tmp_path: Path) -> Iterator[logging.Logger]:
    """A logger as Ray Serve's of a replica is, mended twice."""
    logger = logging.Logger("ray.serve")
    file = logging.handlers.RotatingFileHandler(tmp_path / "log", encoding="utf-8")
    logger.addHandler(logging.handlers.MemoryHandler(1, target=file))
    mend_lines(logger, ["some_package"])
    mend_lines(logger, ["some_package"])
    assert len(logger.filters) == 1
    yield logger
    file.close()
    logging.getLogger("some_package").handlers.clear()


def test_half_a_surrogate_pair_is_escaped(
    logger: logging.Logger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger.info("ValueError: \ud800 is bad")
    logger.info("%s has é", "\udfff")
    try:
        raise ValueError("\udabc")
    except ValueError:
        logger.exception("it failed")
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[:4] == [
        r"ValueError: \ud800 is bad",
        r"\udfff has é",
        "it failed",
        "Traceback (most recent call last):",
    ]
    assert lines[-1] == r"ValueError: \udabc"
    assert capsys.readouterr().err == "", "what Python says of a failed line is a line in a replica"


def test_a_very_long_line_is_cut(logger: logging.Logger, tmp_path: Path) -> None:
    logger.info("x" * MAX_LINE_CHARS)
    logger.info("x" * 10**6)
    first, second = (tmp_path / "log").read_text().splitlines()
    assert first == "x" * MAX_LINE_CHARS
    assert second == f"{first}… (1000000 characters)"


def test_other_lines_stay_as_they_are(logger: logging.Logger, tmp_path: Path) -> None:
    logger.info("%s of %d: %s", "one", 2, "ü")
    assert (tmp_path / "log").read_text() == "one of 2: ü\n"


def test_lines_of_other_loggers_come_with_their_level(
    logger: logging.Logger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    handler: Any = logger.handlers[0]
    handler.target.setFormatter(logging.Formatter("%(levelname)s %(name)s %(message)s"))
    own = logging.getLogger("some_package.module")
    own.error("it \ud800 failed")
    own.info("keys are read")
    own.debug("too much")
    logger.setLevel(logging.ERROR)
    own.warning("not wanted any more")
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines == [
        r"ERROR some_package.module it \ud800 failed",
        "INFO some_package.module keys are read",
    ]
    assert capsys.readouterr().err == ""
