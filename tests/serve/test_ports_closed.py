"""A service on the loopback address is out of reach, even where Ray is told to trust everybody."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serve.intrusion import HOST, Scene, in_namespace, scene
from tests.serve.shell import echo_config
from tests.serve.two_nodes import can_make_networks

OPEN = {"RAY_AUTH_MODE": "disabled", "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1"}

pytestmark = pytest.mark.skipif(
    not can_make_networks(), reason="needs root and Debian's iproute2 to make network namespaces"
)


@pytest.fixture(scope="module")
def unprotected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A service on the loopback address, with Ray's protections switched off by its user."""
    folder = tmp_path_factory.mktemp("unprotected")
    with scene(folder, 79, echo_config(), "127.0.0.1", **OPEN) as found:
        yield found


def test_the_intruder_gets_in_where_the_protections_are_off(unprotected: Scene) -> None:
    """Else the other tests would show only that the intruder is harmless."""
    reached, ran = unprotected.intrude(*in_namespace(unprotected.network), dashboards=[])
    assert unprotected.shell.port in reached["ports"]
    assert ran


def test_nothing_listens_beyond_loopback_unless_opened(unprotected: Scene) -> None:
    assert [each for each in unprotected.listeners() if not each.is_local] == []
    address = unprotected.network.address(HOST)
    reached, ran = unprotected.intrude(address=address, sockets=[], open=[])
    assert reached["ports"] == []
    assert not ran
