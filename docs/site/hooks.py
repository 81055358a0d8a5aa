"""MkDocs hooks: documents that live outside of ``docs/`` are pages too, and links lead to the same place on both sides.

On the code host a link is a path in the repository, so that is how all documents are written. Here each link is led to
the page that its file has on the site; a file that is no page (a default, a schema) is copied beside them. A link to
nothing is left as it is, and the strict build refuses it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
OUTSIDE = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "project/architecture.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "CHANGELOG.md": "project/changes.md",
    "tests/README.md": "project/tests.md",
}
INSIDE = {page: source for source, page in OUTSIDE.items()}
LINK = re.compile(r"(?<=\]\()(?!https?://|mailto:|#)([^)#\s]+)")
MARKED = re.compile(r"^(```\w+) .+$", re.MULTILINE)
"""A block that the tests run says more than its language; the site would take such a fence for text."""
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def source_of(page: str) -> str:
    """Path in the repository of a page of the site."""
    return INSIDE.get(page, f"docs/{page}")


def page_of(source: str) -> str:
    """Path on the site of a file of the repository."""
    return OUTSIDE.get(source) or (source.removeprefix("docs/") if source.startswith("docs/") else f"files/{source}")


def targets(source: str) -> set[str]:
    """The files of the repository that a document links to."""
    text = FENCE.sub("", (ROOT / source).read_text(encoding="utf-8"))
    return {posixpath.normpath(posixpath.join(posixpath.dirname(source), found)) for found in LINK.findall(text)}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the documents outside of ``docs/``, and what the documents link to that is no page."""
    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    documents = [source_of(file.src_uri) for file in files.documentation_pages()]
    linked = {target for source in documents for target in targets(source)}
    for target in sorted(linked):
        if (ROOT / target).is_file() and page_of(target).startswith("files/"):
            files.append(File.generated(config, page_of(target), abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Lead each link to the page of the file that it names."""
    here = page.file.src_uri
    folder = posixpath.dirname(source_of(here))

    def led(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, found.group(1)))
        return posixpath.relpath(page_of(target), posixpath.dirname(here) or ".")

    return LINK.sub(led, MARKED.sub(r"\1", markdown))
