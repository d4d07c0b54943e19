"""The lines of HAProxy's configuration."""

from __future__ import annotations

import pytest

from truthgpt_serve.cluster.haproxy.configuration import UnknownConfigurationError, insert, section


def test_sections_end_where_the_next_one_begins() -> None:
    lines = ["global", "    a", "", "defaults", "    b", "listen x"]
    assert section(lines, "defaults") == (4, 5)
    insert(lines, "defaults", "c")
    assert lines[3:5] == ["defaults", "    c"]
    with pytest.raises(UnknownConfigurationError, match="no section `backend y`"):
        section(lines, "backend y")
