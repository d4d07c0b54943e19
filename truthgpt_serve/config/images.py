"""The `serving.images` section: limits of image requests, and how long `url` results are kept."""

from __future__ import annotations

from truthgpt_serve.body_limits import IMAGE_UPLOAD_BYTES
from truthgpt_serve.config.base import Count, Seconds, Section


class ImagesSection(Section):
    """Limits of image requests.

    Other tasks ignore it.
    """

    max_images: Count = 10
    """Most images that one request may ask for (`n`). More lets one client take more of the model
    at once."""

    max_input_images: Count = 16
    """Most images that one edit may bring. More takes more memory for each request."""

    max_upload_bytes: Count = IMAGE_UPLOAD_BYTES
    """Largest body of an image request in bytes, all its files together; `serving.max_body_bytes`
    and the router's `max_body_bytes` bound it too. More takes more memory for each request."""

    max_pixels: Count = 16 * 1024 * 1024
    """Most pixels of one uploaded image, and of a requested `size`; all images of one request
    together may have four times as many. It is checked before an upload is decoded: a file of few
    bytes can hold very many pixels. More takes more memory, 3 bytes a pixel."""

    max_prompt_chars: Count = 32000
    """Longest `prompt` and `negative_prompt` in characters. How much of it the model reads is the
    model's own affair."""

    url_expiry_s: Seconds = 3600
    """Seconds for which a result that was asked for as `url` can be fetched. More fills
    `max_stored_bytes` sooner."""

    max_stored_bytes: Count = 512 * 1024 * 1024
    """Memory in bytes for this model's `url` results in the whole cluster; beyond it the oldest go
    before their time."""
