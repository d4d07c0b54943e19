"""Hooks of MkDocs: the page about Kubernetes, which stands in k8s/, becomes a page of the site."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
KUBERNETES = "kubernetes.md"
_LINK = re.compile(r"\]\(([^)#]+)(#[^)]*)?\)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the page."""
    text = (ROOT / "k8s" / "README.md").read_text()
    files.append(File.generated(config, KUBERNETES, content=_LINK.sub(_move_link, text)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Points links to it at its place in the site."""
    return markdown.replace("](../k8s/README.md", f"]({KUBERNETES}")


def _move_link(link: re.Match[str]) -> str:
    """Returns a link of k8s/README.md as it is seen from docs/."""
    target, anchor = link[1], link[2] or ""
    if "://" in target:
        return link[0]
    path = (ROOT / "k8s" / target).resolve()
    if path.is_relative_to(ROOT / "docs"):
        return f"]({path.relative_to(ROOT / 'docs')}{anchor})"
    return f"](#{anchor.removeprefix('#')})" if anchor else "]"
