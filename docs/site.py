"""What MkDocs is told besides `mkdocs.yml`: the pages at the root of the repository, as pages of the site."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_ROOT_PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md"}
"""Name on the site, by file at the root."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages at the root, with links that are right from where they stand on the site.

    See https://www.mkdocs.org/dev-guide/plugins/#on_files.
    """
    root = Path(config.config_file_path).parent
    for name, on_site in _ROOT_PAGES.items():
        text = (root / name).read_text(encoding="utf-8")
        files.append(File.generated(config, on_site, content=re.sub(r"\]\((?:\./)?docs/", "](", text)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links from the pages of `docs` to those at the root stay on the site."""
    for name, on_site in _ROOT_PAGES.items():
        markdown = markdown.replace(f"](../{name}", f"]({on_site}")
    return markdown
