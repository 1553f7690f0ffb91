"""What the pages of the repository name: files, functions, and each other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])

_PATH = re.compile(r"[\w.-]+(?:/[\w.-]+)+\.(?:py|ya?ml|md|toml|sh|j2)\b")
_LINK = re.compile(r"\]\(([^)#\s]*)(?:#([\w-]+))?\)")
_FENCE = re.compile(r"^```.*?^```", re.M | re.S)


def named_paths(page: Path) -> Iterator[str]:
    """Paths with a folder that stand in backticks."""
    for span in re.findall(r"`([^`\n]+)`", _FENCE.sub("", page.read_text())):
        yield from _PATH.findall(span)


def named_modules(page: Path) -> Iterator[str]:
    """Names of Python files without a folder that stand in backticks."""
    for span in re.findall(r"`([^`\n]+)`", _FENCE.sub("", page.read_text())):
        yield from re.findall(r"(?<![\w./])\w+\.py\b", span)


def named_members(page: Path) -> Iterator[str]:
    """`Class.method` and `Class.field` that stand in backticks."""
    yield from re.findall(r"`([A-Z][a-z]\w*\.\w+)`", _FENCE.sub("", page.read_text()))


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """(file, anchor) of each link to a file of the repository; the anchor may be empty."""
    for target, anchor in _LINK.findall(_FENCE.sub("", page.read_text())):
        if not target.startswith(("http:", "https:")):
            yield (page.parent / target).resolve() if target else page, anchor


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@cache
def definitions(file: Path) -> frozenset[str]:
    """Names of a module's functions and classes, `Class.method` and `Class.field`."""
    found: set[str] = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = (item for item in node.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef))
            found |= {f"{node.name}.{method.name}" for method in methods}
            fields = (item.target for item in node.body if isinstance(item, ast.AnnAssign))
            found |= {f"{node.name}.{name.id}" for name in fields if isinstance(name, ast.Name)}
    return frozenset(found)


def rows(text: str) -> Iterator[list[str]]:
    """Cells of the rows of a page's tables, heads included."""
    for line in text.splitlines():
        if line.startswith("|") and not line.startswith("|---"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def section(page: Path, heading: str) -> str:
    """What stands under a heading of the second level."""
    return page.read_text().split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
