"""Lines of the access log, as Ray Serve's own handlers write them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray.serve._private.logging_utils as serve_logging
from ray.serve.schema import LoggingConfig

from truthgpt_serve.access.credentials import create_key
from truthgpt_serve.access.identity import SCOPE_KEY, Identity
from truthgpt_serve.access.meter import USAGE_KEY
from truthgpt_serve.telemetry.access_log import LOGGER, AccessLog, is_ours
from truthgpt_serve.telemetry.record import MAX_PATH, RequestRecord
from truthgpt_serve.usage.counted import Usage
from truthgpt_serve.wording import HIDDEN


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger(LOGGER)
    kept = logger.handlers[:], logger.filters[:], logger.level, logger.propagate
    logger.handlers = []
    yield logger
    close(logger)
    logger.handlers, logger.filters, logger.level, logger.propagate = kept


def close(logger: logging.Logger) -> None:
    for handler in logger.handlers:
        target = getattr(handler, "target", None)
        handler.close()
        if target is not None:
            target.close()


def configure(folder: Path, **config: Any) -> None:
    """Configures the logger of this process as Ray Serve does that of a component."""
    close(logging.getLogger(LOGGER))
    serve_logging.configure_component_logger(
        component_name="x",
        component_id="1",
        logging_config=LoggingConfig(logs_dir=str(folder), **config),
        max_bytes=10**6,
        backup_count=1,
    )


def written(folder: Path) -> list[str]:
    return [line for file in folder.glob("*.log") for line in file.read_text().splitlines()]


def request(path: str = "/v1/chat/completions") -> RequestRecord:
    headers = [(b"x-request-id", b"id-1"), (b"authorization", b"Bearer tgs-secret")]
    scope = {
        **{"type": "http", "method": "POST", "path": path, "headers": headers},
        **{"query_string": b"key=tgs-secret", SCOPE_KEY: Identity("team-a")},
        USAGE_KEY: Usage(prompt_tokens=7, cached_tokens=2, completion_tokens=3, queued_s=0.25),
    }
    record = RequestRecord(scope, "story", "/models/story")
    record.note({"type": "http.response.start", "status": 200, "headers": []})
    record.first_s = record.began_s + 0.5
    record.last_s = record.began_s + 1.5
    record.is_whole = True
    return record


def test_a_line_has_the_fields_and_no_secret(tmp_path: Path, logger: logging.Logger) -> None:
    configure(tmp_path, encoding="JSON", enable_access_log=True)
    AccessLog(logger).write(request("/models/story/v1/chat/completions"))
    (line,) = written(tmp_path)
    assert "secret" not in line
    fields = json.loads(line)
    assert fields["message"] == "POST /v1/chat/completions 200 1500.0ms"
    assert {key: fields[key] for key in ("request_id", "model", "key_name", "outcome")} == {
        **{"request_id": "id-1", "model": "story", "key_name": "team-a", "outcome": "ok"}
    }
    assert (fields["status"], fields["path"]) == (200, "/v1/chat/completions")
    assert (fields["queue_ms"], fields["first_byte_ms"], fields["total_ms"]) == (250, 500, 1500)
    tokens = [fields[f"{kind}_tokens"] for kind in ("prompt", "cached", "completion")]
    assert tokens == [7, 2, 3]
    assert fields["component_name"] == "x"


def test_a_key_in_a_path_or_an_id_is_hidden(tmp_path: Path, logger: logging.Logger) -> None:
    configure(tmp_path, encoding="JSON", enable_access_log=True)
    key = create_key()
    record = request(f"/v1/models/{'x' * (MAX_PATH - 40)}{key}/a{key}")
    record.note(
        {"type": "http.response.start", "status": 200, "headers": [(b"x-request-id", key.encode())]}
    )
    AccessLog(logger).write(record)
    (line,) = written(tmp_path)
    assert key[:12] not in line
    assert f"{'x' * (MAX_PATH - 40)}{HIDDEN}/a" in json.loads(line)["path"]
    assert json.loads(line)["request_id"] == "id-1"  # a key is no id


def test_rays_switch_is_ours_and_may_turn_while_it_runs(
    tmp_path: Path, logger: logging.Logger
) -> None:
    configure(tmp_path, encoding="JSON", enable_access_log=False)
    log = AccessLog(logger)
    log.write(request())
    assert not log.is_on
    configure(tmp_path, encoding="JSON", enable_access_log=True)
    assert log.is_on
    log.write(request())
    configure(tmp_path, encoding="JSON", enable_access_log=True, log_level="WARNING")
    assert not log.is_on
    log.write(request())
    assert len(written(tmp_path)) == 1


def test_a_path_adds_no_line_to_a_log_of_text(tmp_path: Path, logger: logging.Logger) -> None:
    configure(tmp_path, encoding="TEXT", enable_access_log=True)
    AccessLog(logger).write(request("/a\nERROR forged" + "x" * 1000))
    (line,) = written(tmp_path)
    assert "/a\\nERROR forged" in line
    assert len(line) < 500


def test_rays_own_lines_for_requests_go_and_nothing_else(
    tmp_path: Path, logger: logging.Logger
) -> None:
    configure(tmp_path, encoding="JSON", enable_access_log=True)
    AccessLog(logger)
    AccessLog(logger)
    assert logger.filters.count(is_ours) == 1
    logger.info("GET / 200 1.0ms", extra={"serve_access_log": True, "skip_context_filter": True})
    logger.warning("else")
    (line,) = written(tmp_path)
    assert json.loads(line)["message"] == "else"
