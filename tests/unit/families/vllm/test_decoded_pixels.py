"""Images that are decoded at the same time have one bound, which gives room back as they end."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus

import pytest
from PIL import Image
from vllm.exceptions import GracefulHTTPError

from deployments.vllm.decoded_pixels import FEW_PIXELS, DecodedPixels, pixels_of_machine
from truthgpt_serve.hardware.memory import total_memory

MANY = FEW_PIXELS + 1


def decode(pixels: DecodedPixels, number: int, of_request: int = MANY) -> Image.Image:
    with pixels.room(number, of_request) as decoded:
        image = Image.new("1", (2, 2))
        decoded.append(image)
    return image


def test_more_than_fit_are_refused_until_one_has_ended() -> None:
    pixels = DecodedPixels(100)
    first, second = decode(pixels, 60), decode(pixels, 40)
    with pytest.raises(GracefulHTTPError, match="send the request again in a moment") as caught:
        decode(pixels, 1)
    assert caught.value.http_status is HTTPStatus.TOO_MANY_REQUESTS
    del first
    third = decode(pixels, 60)
    with pytest.raises(GracefulHTTPError):
        decode(pixels, 1)
    del second, third
    assert decode(pixels, 100)


def test_requests_with_few_pixels_have_room_beside_large_ones() -> None:
    pixels = DecodedPixels(100)
    large = decode(pixels, 100)
    small = decode(pixels, 100, FEW_PIXELS)
    with pytest.raises(GracefulHTTPError):
        decode(pixels, 1, FEW_PIXELS)
    del large, small


def test_what_is_not_decoded_takes_no_room() -> None:
    pixels = DecodedPixels(100)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), pixels.room(100, MANY):
            raise ZeroDivisionError


def test_images_that_the_garbage_collector_finds_give_room_back() -> None:
    pixels = DecodedPixels(100)
    cycle: list[object] = [decode(pixels, 100)]
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert decode(pixels, 100)


def test_threads_count_together() -> None:
    pixels = DecodedPixels(100)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            held = list(pool.map(lambda _: decode(pixels, 10), range(10)))
            with pytest.raises(GracefulHTTPError):
                decode(pixels, 1)
            del held


def test_a_machine_holds_some_of_the_largest_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_MAX_IMAGE_PIXELS", str(total_memory()))
    assert decode(pixels_of_machine(), 2 * total_memory())
    monkeypatch.setenv("VLLM_MAX_IMAGE_PIXELS", "0")
    assert decode(pixels_of_machine(), total_memory() // 32)
    with pytest.raises(GracefulHTTPError):
        decode(pixels_of_machine(), total_memory() // 32 + 1)
