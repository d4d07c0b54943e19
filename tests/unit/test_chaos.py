"""What the chaos program calls a failure, and whose: from answers and requests made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.chaos.disk import fill_disk
from benchmarks.chaos.load import Sent, find_fault
from benchmarks.chaos.parts import Holds
from benchmarks.chaos.strike import Strike

HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"
ANSWERS = {
    "": CHUNKED + b"9\r\ndata: request-7\r\n0\r\n\r\ndata: [DONE]\n\n0\r\n\r\n",
    "cut": CHUNKED + b"data: request-7 data: [DONE]",
    "closed without an answer": b"",
    "status 503": b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\n{}",
    "error at the end of a stream": CHUNKED + b'data: {"error": {}}\n\n0\r\n\r\n',
    "the answer to another request": CHUNKED + b"request-8 data: [DONE]0\r\n\r\n",
}


@pytest.mark.parametrize("fault", ANSWERS)
def test_faults_of_streams(fault: str) -> None:
    assert find_fault(Sent(7, "direct", True, 0.0), ANSWERS[fault]) == fault


def test_faults_of_whole_answers() -> None:
    sent = Sent(7, "direct", False, 0.0)
    answer = HEAD + b"content-length: 9\r\n\r\nrequest-7"
    assert find_fault(sent, answer) == ""
    assert find_fault(sent, answer[:-1]) == "cut"


def judged(holds: Holds) -> Strike:
    """Judges a good request, one that failed before, and three that failed after the strike."""
    requests = [
        Sent(number, "router", True, began_s, 0, ended_s, fault)
        for number, began_s, ended_s, fault in (
            (0, 99.0, 101.0, ""),
            (1, 98.0, 99.0, "cut"),
            (2, 99.0, 100.5, "cut"),
            (3, 99.5, 102.0, "status 502"),
            (4, 101.0, 103.0, "ConnectionRefusedError"),
            (5, 101.0, None, ""),
        )
    ]
    strike = Strike("x", "kill", 100.0, held={0, 2})
    strike.judge(requests, holds)
    return strike


def test_what_failed_elsewhere() -> None:
    strike = judged(Holds.SOME)
    assert (strike.failed_held, strike.failed_elsewhere, strike.failed_away) == (1, 2, 0)
    assert strike.recovery_s == pytest.approx(3.0)
    faults = {"cut": 1, "status 502 (router)": 1, "ConnectionRefusedError (router)": 1}
    assert strike.faults == faults
    strike = judged(Holds.ALL)
    assert (strike.failed_held, strike.failed_elsewhere, strike.failed_away) == (1, 0, 2)


def test_a_full_disk_ends_the_filling(tmp_path: Path) -> None:
    (tmp_path / "filler").symlink_to("/dev/full")
    fill_disk(tmp_path / "filler")
    (tmp_path / "closed").mkdir()
    with pytest.raises(IsADirectoryError):
        fill_disk(tmp_path / "closed")
