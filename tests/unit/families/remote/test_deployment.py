"""The class of the family, as it loads."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployments.remote.deployment import RemoteModel
from tests.support.remote_servers import KEY_VARIABLE, remote_cfg
from truthgpt_serve.errors import ConfigError


async def test_the_key_must_be_there_when_the_model_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = remote_cfg("http://127.0.0.1:1/v1", api_key_env=KEY_VARIABLE)
    place = "configuration: serving.engine.api_key_env"
    for value, message in (
        (
            None,
            f"{place}: the environment variable {KEY_VARIABLE} is not set where the replica runs "
            "(set it to the remote server's key before Ray starts, or in runtime_env.env_vars)",
        ),
        (
            "two words",
            f"{place}: the environment variable {KEY_VARIABLE} holds what cannot be a key "
            "(set it to the key alone: visible ASCII characters without spaces)",
        ),
    ):
        monkeypatch.delenv(KEY_VARIABLE, raising=False)
        if value is not None:
            monkeypatch.setenv(KEY_VARIABLE, value)
        with pytest.raises(ConfigError) as caught:
            await RemoteModel().load(cfg)
        assert caught.value.message == message


async def test_a_replica_that_was_given_a_gpu_starts() -> None:
    cfg = remote_cfg("http://127.0.0.1:1/v1")
    cfg["hardware"]["gpus"] = 1  # what `auto` becomes in a cluster that has some
    model = RemoteModel()
    await model.load(cfg)
    await model.close()


async def test_a_missing_certificate_file_is_named(tmp_path: Path) -> None:
    cfg = remote_cfg("https://127.0.0.1:1/v1", ca_file=str(tmp_path / "none.pem"))
    with pytest.raises(ConfigError, match=r"ca_file: '.*none.pem' cannot be read: No such file"):
        await RemoteModel().load(cfg)
