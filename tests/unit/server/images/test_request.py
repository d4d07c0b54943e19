"""Malformed image requests: each has an exact status, message and parameter, in the envelope."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.support.image_classes import Odd, OddStream, Plain, Studio
from tests.support.image_files import (
    animated,
    bomb,
    encode,
    jpeg_of_scans,
    mask_png,
    png,
    png_chunk,
)
from tests.support.servers import serve_asgi
from tests.unit.server.images.test_routes import image_server, image_spec
from truthgpt_serve.server import create_app
from truthgpt_serve.server.images import files
from truthgpt_serve.server.images.fields import GenerationFields

MAKE, EDIT, VARY = "/v1/images/generations", "/v1/images/edits", "/v1/images/variations"
MAX_BODY_BYTES = 200_000
LIMITS = {"max_images": 4, "max_pixels": 4096, "max_prompt_chars": 100, "max_input_images": 3}


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    cfg = {"task": "image-generation", "serving": {"images": LIMITS}}
    app = create_app(image_spec(Studio), cfg, name="painter", max_body_bytes=MAX_BODY_BYTES)
    with serve_asgi(app, lifespan="on") as url, httpx.Client(base_url=url) as client:
        yield client


def made(**fields: Any) -> dict[str, Any]:
    return {"model": "painter", "prompt": "x", **fields}


def refusal(
    answer: httpx.Response, status: int, param: str | None, message: str, code: str | None = None
) -> None:
    error = answer.json()["error"]
    assert error["message"] == message
    assert (answer.status_code, error["param"], error["code"]) == (status, param, code)
    assert error["type"] == "invalid_request_error"
    assert answer.headers["x-request-id"]


def named(answer: httpx.Response, param: str, code: str | None) -> None:
    """Checks a refusal whose wording is that of its kind."""
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code)
    assert error["type"] == "invalid_request_error"
    assert repr(param)[1:-1] in error["message"] or param == "scheduler"


UNKNOWN, BIG = "unknown_parameter", "image_too_large"
# body, status, message, code
BAD_JSON: list[tuple[Any, int, str, str | None]] = [
    (b"", 400, "the request has no body; send a JSON object", None),
    (b"{", 400, "the request body is not valid JSON: Input data was truncated", None),
    ([], 400, "the body must be a JSON object, not a list", None),
    (
        b" " * (MAX_BODY_BYTES + 1),
        413,
        "the request body is larger than 200000 bytes, the limit that "
        "`serving.max_body_bytes` sets",
        "request_too_large",
    ),
]
BAD_SIZES = ("big", "64", "0x64", "-8x8", "64X64", "64x64x3", 64, [64, 64])
# body, param, code; tests of `request_schema` pin one wording for each kind of fault
BAD_FIELDS: list[tuple[dict[str, Any], str, str | None]] = [
    ({"prompt": "x"}, "model", None),
    (made(model=3), "model", None),
    ({"model": "painter"}, "prompt", None),
    (made(prompt=None), "prompt", None),
    (made(prompt=["x"]), "prompt", None),
    (made(prompt=""), "prompt", None),
    (made(prompt="x" * 101), "prompt", None),
    (made(negative_prompt="x" * 101), "negative_prompt", None),
    (made(n=0), "n", None),
    (made(n=5), "n", None),
    (made(n="2"), "n", None),
    (made(n=1.5), "n", None),
    (made(n=True), "n", None),
    *[(made(size=size), "size", None) for size in BAD_SIZES],
    (made(size="65x64"), "size", None),
    (made(size="999999x999999"), "size", None),
    (made(response_format="hex"), "response_format", None),
    (made(output_format="gif"), "output_format", None),
    (made(output_format=["png"]), "output_format", None),
    (made(output_compression=101, output_format="webp"), "output_compression", None),
    (made(output_compression=50), "output_compression", None),
    (made(quality="best"), "quality", None),
    (made(background="blue"), "background", None),
    (made(background="transparent"), "background", "unsupported"),
    (made(moderation="none"), "moderation", None),
    (made(style="loud"), "style", None),
    (made(user=7), "user", None),
    (made(stream="yes"), "stream", None),
    (made(partial_images=2), "partial_images", None),
    (made(partial_images=4, stream=True), "partial_images", None),
    (made(progress=True), "progress", None),
    (made(stream=True, response_format="url"), "response_format", None),
    (made(steps=0), "steps", None),
    (made(steps=10**9), "steps", None),
    (made(guidance_scale="high"), "guidance_scale", None),
    (made(guidance_scale=-1), "guidance_scale", None),
    (made(seed=-1), "seed", None),
    (made(seed=2**53), "seed", None),
    (made(seed=2**53 - 1, n=2), "seed", None),
    (made(scheduler=""), "scheduler", None),
    (made(scheduler="unknown"), "scheduler", None),
    (made(adapters="ink"), "adapters", None),
    (made(adapters=["ink", 3]), "adapters[1]", None),
    (made(adapters={"ink": "much"}), "adapters.ink", None),
    (made(adapters={"": 1}), "adapters", None),
    (made(adapters={str(number): 1 for number in range(33)}), "adapters", None),
    (made(stepps=3), "stepps", UNKNOWN),
    (made(num_inference_steps=3), "num_inference_steps", UNKNOWN),
    (made(width=512), "width", UNKNOWN),
    (made(image="data:image/png;base64,"), "image", UNKNOWN),
    (made(strength=0.5), "strength", UNKNOWN),
    (made(svg={"model": "x"}), "svg", "unsupported"),
    (made(frame_count=4), "frame_count", "unsupported"),
]


@pytest.mark.parametrize(("body", "status", "message", "code"), BAD_JSON)
def test_a_bad_json_body_says_what_is_wrong(
    client: httpx.Client, body: Any, status: int, message: str, code: str | None
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    refusal(client.post(MAKE, content=content), status, None, message, code)


@pytest.mark.parametrize(("body", "param", "code"), BAD_FIELDS, ids=range(len(BAD_FIELDS)))
def test_a_bad_field_is_named(
    client: httpx.Client, body: dict[str, Any], param: str, code: str | None
) -> None:
    Studio.last.inputs.clear()
    named(client.post(MAKE, json=body), param, code)
    if param != "scheduler":
        assert Studio.last.inputs == [], "the model was asked all the same"


def test_another_model_does_not_exist_here(client: httpx.Client) -> None:
    message = "the model 'x' does not exist here; this is 'painter'"
    refusal(client.post(MAKE, json=made(model="x")), 404, "model", message, "model_not_found")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (made(n=5), "`n` must be at most 4, not 5"),
        (made(prompt="x" * 101), "`prompt` must have at most 100 characters, not 101"),
        (made(size="65x64"), "`size` must have at most 4096 pixels, not 4160"),
        (made(svg={}), "`svg` is an object, but this model makes no SVG"),
        (made(num_inference_steps=3), "unknown field `num_inference_steps`; did you mean `steps`?"),
        (made(strength=0.5), "unknown field `strength`; /v1/images/edits changes an image"),
        (
            made(zzz=1),
            f"unknown field `zzz`; the fields are {', '.join(GenerationFields.model_fields)}",
        ),
    ],
)
def test_the_wordings_of_images(client: httpx.Client, body: dict[str, Any], message: str) -> None:
    assert client.post(MAKE, json=body).json()["error"]["message"] == message


def no_number(name: str) -> str:
    return f'{{"model": "painter", "prompt": "x", "{name}": NaN}}'


def test_nan_is_no_json(client: httpx.Client) -> None:
    answer = client.post(MAKE, content=no_number("guidance_scale"))
    assert answer.status_code == 400
    assert "not valid JSON" in answer.json()["error"]["message"]


UNREADABLE = "`image` is not a PNG, JPEG or WebP image that can be read"
FORM = {"model": "painter", "prompt": "x"}
File = tuple[str, bytes] | tuple[str, bytes, str]
# route, fields, files, status, param, message, code
BAD_FILES: list[
    tuple[str, dict[str, Any], list[tuple[str, Any]], int, str | None, str, str | None]
] = [
    (EDIT, FORM, [], 400, "image", "`image` is required: send a PNG, JPEG or WebP file", None),
    (
        EDIT,
        {**FORM, "image": "x"},
        [("mask", ("m", mask_png()))],
        400,
        "image",
        "`image` must be a file, not text",
        None,
    ),
    (EDIT, FORM, [("image", ("i", b""))], 400, "image", "`image` is an empty file", None),
    (EDIT, FORM, [("image", ("i", b"hello"))], 400, "image", UNREADABLE, None),
    (EDIT, FORM, [("image", ("i", b"\x89PNG\r\n\x1a\n"))], 400, "image", UNREADABLE, None),
    (
        EDIT,
        FORM,
        [("image", ("i", encode(Image.new("RGB", (8, 8)), "GIF")))],
        400,
        "image",
        UNREADABLE,
        None,
    ),
    (
        EDIT,
        FORM,
        [("image", ("i", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"))],
        400,
        "image",
        UNREADABLE,
        None,
    ),
    (
        EDIT,
        FORM,
        [("image", ("i", encode(Image.new("RGB", (8, 8)), "BMP")))],
        400,
        "image",
        UNREADABLE,
        None,
    ),
    (
        EDIT,
        FORM,
        [("image", ("i", animated("PNG")))],
        400,
        "image",
        "`image` is animated (3 frames): send a still image",
        None,
    ),
    (
        EDIT,
        FORM,
        [("image", ("i", animated("WEBP")))],
        400,
        "image",
        "`image` is animated (3 frames): send a still image",
        None,
    ),
    (
        EDIT,
        FORM,
        [("image", ("i", png(65, 64)))],
        413,
        "image",
        "`image` has 65x64 pixels, 4160 in all, more than the 4096 that this model takes",
        BIG,
    ),
    (
        EDIT,
        FORM,
        [("image", ("i", jpeg_of_scans(101)))],
        400,
        "image",
        "`image` is a JPEG of more than 100 scans: save it anew",
        None,
    ),
    (
        EDIT,
        FORM,
        [("image", ("i", bomb(9000, 9000)))],
        413,
        "image",
        "`image` has 9000x9000 pixels, 81000000 in all, more than the 4096 that this model takes",
        BIG,
    ),
    (
        EDIT,
        FORM,
        [("image", ("i", bomb(12_000, 12_000)))],
        413,
        "image",
        "`image` has far more pixels than the 4096 that this model takes",
        BIG,
    ),
    (
        EDIT,
        FORM,
        [("image", ("i", bomb(2**31 - 1, 2**31 - 1)))],
        413,
        "image",
        "`image` has far more pixels than the 4096 that this model takes",
        BIG,
    ),
    (
        EDIT,
        FORM,
        [("image[]", (str(i), png(8, 8))) for i in range(4)],
        413,
        "image",
        "`image` must have at most 3 images, not 4",
        "too_many_images",
    ),
    (
        EDIT,
        FORM,
        [("image[]", ("a", png())), ("image[]", ("b", b"no"))],
        400,
        "image[1]",
        "`image[1]` is not a PNG, JPEG or WebP image that can be read",
        None,
    ),
    (
        EDIT,
        FORM,
        [("image", ("i", png())), ("mask", ("m", mask_png(30, 40)))],
        400,
        "mask",
        "`mask` is 30x40 pixels, but the image is 40x30: they must have the same size",
        None,
    ),
    (
        EDIT,
        FORM,
        [("image", ("i", png())), ("mask", ("m", png()))],
        400,
        "mask",
        "`mask` has no transparency: what is transparent in the mask is painted anew, so send a "
        "PNG or WebP with an alpha channel",
        None,
    ),
    (
        EDIT,
        FORM,
        [("image", ("i", png())), ("mask", ("m", mask_png(transparent=False)))],
        400,
        "mask",
        "`mask` has no transparent pixel, so nothing would be painted anew",
        None,
    ),
    (
        EDIT,
        FORM,
        [("image", ("i", png())), ("mask", ("m", b"x"))],
        400,
        "mask",
        "`mask` is not a PNG, JPEG or WebP image that can be read",
        None,
    ),
    (
        EDIT,
        FORM,
        [("image", ("i", png())), ("mask", ("m", mask_png())), ("mask", ("n", mask_png()))],
        400,
        "mask",
        "`mask` is given more than once",
        None,
    ),
    (
        VARY,
        {"model": "painter"},
        [("image", ("a", png())), ("image", ("b", png()))],
        413,
        "image",
        "`image` must have at most 1 image, not 2",
        "too_many_images",
    ),
    (
        VARY,
        {"model": "painter"},
        [("image", ("a", png())), ("mask", ("b", mask_png()))],
        400,
        "mask",
        "`mask` is not a file that /v1/images/variations takes",
        None,
    ),
]
# route, fields, files, param, code
BAD_FORM_FIELDS: list[tuple[str, dict[str, Any], list[tuple[str, Any]], str, str | None]] = [
    (EDIT, {"model": "painter"}, [("image", ("i", png()))], "prompt", None),
    (EDIT, {"prompt": "x"}, [("image", ("i", png()))], "model", None),
    (EDIT, FORM, [("image", ("i", png())), ("markup", ("m", mask_png()))], "markup", "unsupported"),
    (EDIT, FORM, [("image", ("i", png())), ("photo", ("m", png()))], "photo", None),
    (EDIT, {**FORM, "n": "two"}, [("image", ("i", png()))], "n", None),
    (EDIT, {**FORM, "strength": "0"}, [("image", ("i", png()))], "strength", None),
    (EDIT, {**FORM, "strength": "nan"}, [("image", ("i", png()))], "strength", None),
    (EDIT, {**FORM, "guidance_scale": "1e999"}, [("image", ("i", png()))], "guidance_scale", None),
    (EDIT, {**FORM, "stream": "maybe"}, [("image", ("i", png()))], "stream", None),
    (EDIT, {**FORM, "prompt": ["x", "y"]}, [("image", ("i", png()))], "prompt", None),
    (EDIT, {**FORM, "adapters[ink]": "much"}, [("image", ("i", png()))], "adapters.ink", None),
    (EDIT, {**FORM, "adapters": '{"ink": '}, [("image", ("i", png()))], "adapters", None),
    (
        EDIT,
        {**FORM, "adapters": "ink", "adapters[oil]": "1"},
        [("image", ("i", png()))],
        "adapters",
        None,
    ),
    (EDIT, {**FORM, "strenth": "1"}, [("image", ("i", png()))], "strenth", UNKNOWN),
    (
        EDIT,
        {**FORM, "input_fidelity": "high"},
        [("image", ("i", png()))],
        "input_fidelity",
        "unsupported",
    ),
    (VARY, {"model": "painter", "stream": "true"}, [("image", ("a", png()))], "stream", UNKNOWN),
]


@pytest.mark.parametrize(
    ("route", "fields", "files", "status", "param", "message", "code"),
    BAD_FILES,
    ids=range(len(BAD_FILES)),
)
def test_a_bad_file_is_named(
    client: httpx.Client,
    route: str,
    fields: dict[str, Any],
    files: list[tuple[str, Any]],
    status: int,
    param: str | None,
    message: str,
    code: str | None,
) -> None:
    Studio.last.inputs.clear()
    # A form without files would be sent in another encoding.
    parts = files or [("model", (None, fields["model"])), ("prompt", (None, fields["prompt"]))]
    answer = client.post(route, data=fields if files else None, files=parts)
    refusal(answer, status, param, message, code)
    assert Studio.last.inputs == [], "the model was asked all the same"


@pytest.mark.parametrize(
    ("route", "fields", "files", "param", "code"),
    BAD_FORM_FIELDS,
    ids=range(len(BAD_FORM_FIELDS)),
)
def test_a_bad_field_of_a_form_is_named(
    client: httpx.Client,
    route: str,
    fields: dict[str, Any],
    files: list[tuple[str, Any]],
    param: str,
    code: str | None,
) -> None:
    Studio.last.inputs.clear()
    named(client.post(route, data=fields, files=files), param, code)
    assert Studio.last.inputs == [], "the model was asked all the same"


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.98])
def test_a_file_that_is_cut_off_is_refused(client: httpx.Client, form: str, share: float) -> None:
    whole = encode(Image.effect_noise((60, 60), 90).convert("RGB"), form)
    data = whole[: int(len(whole) * share)]
    answer = client.post(EDIT, data=FORM, files={"image": ("i", data)})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "image")
    assert error["message"].startswith(("`image` is damaged or cut off: ", UNREADABLE))


ALPHAS = png_chunk(b"PLTE", bytes(3)) + png_chunk(b"tRNS", bytes(257))


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    ("route", "name"), [(EDIT, "image"), (VARY, "image"), (EDIT, "mask")], ids=str
)
def test_a_file_that_cannot_be_converted_is_refused(
    client: httpx.Client, route: str, name: str, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not known:
        monkeypatch.setattr(files, "find_fault", lambda data: None)
    palette = encode(Image.new("P", (40, 30)))
    at = palette.index(b"PLTE") - 4
    data = palette[:at] + ALPHAS + palette[palette.index(b"IDAT") - 4 :]
    fields = FORM if route == EDIT else {"model": "painter"}
    answer = client.post(route, data=fields, files={"image": ("i", png()), name: ("x", data)})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, name)
    words = "is a PNG with transparency" if known else "is damaged or cut off: palette index"
    assert words in error["message"]


@pytest.mark.parametrize(
    ("form", "size", "most"), [("jpeg", "65501x1", 65_500), ("webp", "1x16384", 16_383)]
)
def test_a_format_that_holds_no_such_image_is_refused(form: str, size: str, most: int) -> None:
    width, height = map(int, size.split("x"))
    with image_server(Studio) as own, httpx.Client(base_url=str(own.base_url)[:-4]) as client:
        Studio.last.inputs.clear()
        asked = client.post(MAKE, json=made(output_format=form, size=size))
        assert Studio.last.inputs == [], "the model was asked all the same"
        fields = {**FORM, "output_format": form}
        upload = {"image": ("i", encode(Image.new("RGB", (width, height))))}
        found = client.post(EDIT, data=fields, files=upload)
    message = (
        f"`output_format` is {form}, which has at most {most} pixels on a side, but the image has "
        f"{size}: ask for png, or for another `size`"
    )
    for answer in (asked, found):
        refusal(answer, 400, "output_format", message)


def test_many_large_images_are_refused_together(client: httpx.Client) -> None:
    with image_server(Studio, {"images": {**LIMITS, "max_input_images": 9}}) as own:
        answer = httpx.post(
            f"{own.base_url}images/edits",
            data=FORM,
            files=[("image[]", (str(index), png(64, 60))) for index in range(9)],
        )
    message = (
        "the first 5 images have 19200 pixels together, more than the 16384 that one request may "
        "have"
    )
    refusal(answer, 413, "image", message, BIG)


def test_image_requests_have_a_size_limit_of_their_own() -> None:
    with image_server(Studio, {"images": {"max_upload_bytes": 5000}}) as own:
        answer = httpx.post(
            f"{own.base_url}images/edits", data=FORM, files={"image": ("i", bytes(5000))}
        )
    message = (
        "the request body is larger than 5000 bytes, the limit that "
        "`serving.images.max_upload_bytes` sets"
    )
    refusal(answer, 413, None, message, "request_too_large")


HEAD = {"content-type": "multipart/form-data; boundary=xyz"}
PART = b'--xyz\r\nContent-Disposition: form-data; name="model"\r\n\r\npainter\r\n'
# headers, body, message
BAD_BODIES: list[tuple[dict[str, str], bytes, str]] = [
    (
        {"content-type": "multipart/form-data"},
        PART,
        "the multipart form has no boundary: send `Content-Type: multipart/form-data; "
        "boundary=...`",
    ),
    (
        {"content-type": "application/json"},
        b"{}",
        "this route takes a form: send `Content-Type: multipart/form-data`, not application/json",
    ),
    (
        {},
        b"{}",
        "this route takes a form: send `Content-Type: multipart/form-data`, not nothing",
    ),
    (
        {"content-type": "multipart/form-data; boundary=" + "x" * 300},
        PART,
        "the request body is not a valid multipart form: Boundary length 300 exceeds maximum of "
        "256",
    ),
    (HEAD, b"", "the request has no body; send a multipart form"),
    (HEAD, PART, "the multipart form ends before its last boundary"),
    (HEAD, PART + b"--xyz", "the multipart form ends before its last boundary"),
    (
        HEAD,
        b"--xyz\r\nContent-Disposition: form-data\r\n\r\nx\r\n--xyz--\r\n",
        "part 1 of the multipart form has no name",
    ),
    (
        HEAD,
        b"--xyz\r\nX: y\r\n\r\nx\r\n--xyz--\r\n",
        "part 1 of the multipart form has no name",
    ),
    (HEAD, PART * 257 + b"--xyz--\r\n", "the multipart form has more than 256 parts"),
    (
        HEAD,
        b'--xyz\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n\xff\r\n--xyz--\r\n',
        "`prompt` is not valid UTF-8",
    ),
]


@pytest.mark.parametrize(("headers", "body", "message"), BAD_BODIES, ids=range(len(BAD_BODIES)))
def test_a_bad_body_says_what_is_wrong(
    client: httpx.Client, headers: dict[str, str], body: bytes, message: str
) -> None:
    answer = client.post(EDIT, content=body, headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["message"]) == (400, message)


def test_a_body_of_another_boundary_is_refused(client: httpx.Client) -> None:
    answer = client.post(EDIT, content=b"hello", headers=HEAD)
    assert answer.status_code == 400
    assert "is not a valid multipart form" in answer.json()["error"]["message"]


def test_a_form_does_not_make_images_from_text(client: httpx.Client) -> None:
    answer = client.post(MAKE, data=FORM, files={"image": ("i", png())})
    message = "this route takes JSON, not a form; /v1/images/edits takes a form with images"
    refusal(answer, 400, None, message, "unsupported")


@pytest.mark.parametrize("route", [MAKE, EDIT, VARY])
def test_other_methods_are_refused(client: httpx.Client, route: str) -> None:
    answer = client.get(route)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("route", [EDIT, VARY])
def test_a_class_that_does_not_say_that_it_edits_is_not_asked_to(route: str) -> None:
    what = {EDIT: "edits", VARY: "variations"}[route]
    with image_server(Plain) as own:
        answer = httpx.post(
            str(own.base_url).removesuffix("/v1/") + route, data=FORM, files={"image": ("i", png())}
        )
    message = f"the model 'painter' cannot do image {what}; it can do image generations"
    refusal(answer, 400, "model", message, "unsupported")


@pytest.mark.parametrize("route", [MAKE, EDIT, VARY])
def test_a_model_of_another_task_has_no_image_routes(route: str) -> None:
    app = create_app(image_spec(Plain), {"task": "text-generation"}, name="painter")
    with serve_asgi(app, lifespan="on") as url:
        answer = httpx.post(url + route, json=FORM)
    message = "the model 'painter' has task text-generation, which has no image routes"
    refusal(answer, 400, "model", message, "unsupported")


def test_an_image_model_has_no_text_routes(client: httpx.Client) -> None:
    answer = client.post("/v1/completions", json=FORM)
    message = "the model 'painter' has task image-generation, which has no text routes"
    refusal(answer, 400, "model", message, "unsupported")


# -- classes that break the contract

WANTED = "an image-generation model returns {'image': PIL image}"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("none", f"Odd.infer returned NoneType; {WANTED}"),
        ("text", f"Odd.infer returned a dict with 'text': x; {WANTED}"),
        ("bytes", f"Odd.infer returned a dict whose 'image' is bytes; {WANTED}"),
        ("bare", f"Odd.infer returned Image; {WANTED}"),
        (
            "usage",
            "Odd.infer returned a dict with 'input_tokens': -1; an image-generation model returns "
            "whole numbers as `usage`: input_tokens and output_tokens",
        ),
        (
            "seed",
            "Odd.infer returned str; an image-generation model returns a whole number as `seed`",
        ),
    ],
)
def test_a_result_that_is_no_image_names_the_class(prompt: str, message: str) -> None:
    with image_server(Odd) as own:
        answer = httpx.post(f"{own.base_url}images/generations", json=made(prompt=prompt))
    assert answer.json()["error"] == {
        "message": message, "type": "server_error", "param": None, "code": None,
    }  # fmt: skip
    assert answer.status_code == 500


def test_an_image_that_cannot_be_written_names_the_class() -> None:
    with image_server(Odd) as own:
        answer = httpx.post(f"{own.base_url}images/generations", json=made(prompt="empty"))
    assert answer.status_code == 500
    message = answer.json()["error"]["message"]
    assert message.startswith("Odd.infer made an image that cannot be written as png: ")


def test_other_errors_stay_in_the_log() -> None:
    with image_server(Odd) as own:
        answer = httpx.post(f"{own.base_url}images/generations", json=made(prompt="error"))
    assert answer.status_code == 500
    assert "secret-key" not in answer.text
    assert answer.headers["x-request-id"] in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (
            "nothing",
            "OddStream.stream ended without an image; its last item is {'image': ...}",
        ),
        (
            "number",
            "OddStream.stream yielded int; an image-generation model yields {'image': PIL image}",
        ),
        (
            "unknown",
            "OddStream.stream yielded a dict with 'color': 1; an image-generation model yields "
            "{'image': PIL image}",
        ),
        (
            "step",
            "OddStream.stream yielded a dict with 'step': 1; an image-generation model yields "
            "{'step': i, 'num_steps': n} or {'queue_position': k}",
        ),
        (
            "negative",
            "OddStream.stream yielded a dict with 'queue_position': -1; an image-generation model "
            "yields {'step': i, 'num_steps': n} or {'queue_position': k}",
        ),
        (
            "partial",
            "OddStream.stream yielded a dict whose 'partial_image' is str; an image-generation "
            "model yields {'partial_image': PIL image, 'index': whole number}",
        ),
    ],
)
@pytest.mark.parametrize("partial_images", [0, 1])
def test_a_stream_that_breaks_the_contract_ends_with_an_error(
    prompt: str, message: str, partial_images: int
) -> None:
    body = made(prompt=prompt, stream=True, partial_images=partial_images)
    with image_server(OddStream) as own:
        answer = httpx.post(f"{own.base_url}images/generations", json=body)
    if partial_images:  # one was sent before
        assert answer.status_code == 200
        *_, last = answer.text.strip().split("\n\n")
        error = json.loads(last.removeprefix("data: "))["error"]
    else:
        assert answer.status_code == 500
        error = answer.json()["error"]
    assert (error["message"], error["type"]) == (message, "server_error")


def test_without_pillow_the_error_names_the_extra() -> None:
    program = """
import asyncio, json, sys
sys.modules["PIL"] = None
from truthgpt_serve.config import load_model_config
from truthgpt_serve.contract import FamilySpec
from truthgpt_serve.server import Application, ModelInstance

class Model:
    def load(self, cfg): pass
    def infer(self, inputs): raise AssertionError("asked without need")

spec = FamilySpec(name="x", class_path="x:Model", model_class=Model)
instance = ModelInstance(spec, load_model_config({"task": "image-generation"}), name="m")
app = Application(instance)
sent = []

async def main():
    body = json.dumps({"model": "m", "prompt": "x"}).encode()
    messages = [{"type": "http.request", "body": body}]
    async def receive():
        return messages.pop() if messages else await asyncio.sleep(60)
    async def send(message): sent.append(message)
    await instance.start()
    scope = {"type": "http", "method": "POST", "path": "/v1/images/generations", "headers": []}
    await app(scope, receive, send)
    await instance.close()

asyncio.run(main())
print(sent[0]["status"], json.loads(sent[1]["body"])["error"]["message"])
print([name for name in ("torch", "diffusers", "ray", "PIL.Image") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.splitlines() == [
        "500 image requests need Pillow, which is not installed here: "
        "pip install 'truthgpt-serve[images]'",
        "[]",
    ], done.stderr
