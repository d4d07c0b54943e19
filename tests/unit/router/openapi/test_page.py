from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

from truthgpt_serve.router.openapi import docs_html, openapi_document

DOCUMENT = openapi_document()


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


class Page(HTMLParser):
    """Collects what a page would load, and the ids of its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name in ("src", "href"):
                self.addresses.append(value or "")
            if name == "id":
                self.ids.append(value or "")


def test_the_page_shows_each_operation_and_loads_nothing() -> None:
    html = docs_html().decode()
    page = Page()
    page.feed(html)
    assert set(page.ids) == {operation["operationId"] for _, _, operation in operations()}
    assert page.addresses == ["openapi.json"]
    assert not page.tags & {"script", "link", "img", "iframe"}
    assert "url(" not in html
    assert "@import" not in html
