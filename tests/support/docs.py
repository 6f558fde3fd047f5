"""Reading the documentation: sections, tables, examples, links, quoted messages."""

import ast
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])

CODE_BLOCK = re.compile(r"^```.*?^```$", flags=re.DOTALL | re.MULTILINE)
HEADING = re.compile(r"^(#+) (.*)$", flags=re.MULTILINE)
CURL_BLOCK = re.compile(
    r"```(?:sh|bash|console)\n(curl [^`]*)```(?:\n\n```(json|text)\n(.*?)```)?", re.DOTALL
)
PYTHON_BLOCK = re.compile(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL)
MESSAGE_ID = re.compile(r"\b[0-9a-f]{17}\b")
# Values that differ from one run of an example to the next.
VOLATILE = {
    "<time>": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00",
    "<request id>": r"\b[0-9a-f]{32}\b",
    "<message id>": MESSAGE_ID.pattern,
    '"created": 0': r'"created": ?\d+',
}
# A format specifier of the logging module.
PLACEHOLDER = re.compile(r"%[.\d]*[sdrg]")
# A shorter text in the code matches too much by accident.
MIN_MESSAGE_CHARS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A command or a program of a page, and the output that the page shows for it."""

    code: str
    output: str
    is_json: bool = False


def name_of(page: Path) -> str:
    """Return the path of a page within the repository."""
    return page.relative_to(ROOT).as_posix()


def read(page: str | Path) -> str:
    """Return the text of a page."""
    return (ROOT / page).read_text(encoding="utf-8")


def section(page: str, heading: str) -> str:
    """Return the text below a heading up to the next heading of its level, without code."""
    text = CODE_BLOCK.sub("", read(page))
    _, found, rest = text.partition(f"\n{heading}\n")
    assert found, f"{page} has no heading {heading!r}"
    level = len(heading) - len(heading.lstrip("#"))
    return re.split(rf"^#{{1,{level}}} ", rest, flags=re.MULTILINE)[0]


def table(page: str, heading: str) -> dict[str, list[str]]:
    """Return the rows of all tables below a heading: the first cell, and the other cells."""
    rows: dict[str, list[str]] = {}
    for block in section(page, heading).split("\n\n"):
        if block.strip().startswith("|"):
            for line in block.strip().splitlines()[2:]:
                first, *others = (cell.strip() for cell in line.strip("|").split("|"))
                assert first not in rows, f"{page} contains the row {first} twice"
                rows[first.strip("`")] = others
    return rows


def curl_examples(page: Path) -> list[Example]:
    """Return the curl commands of a page; `output` is empty if the page shows none."""
    return [
        Example(code=code, output=output, is_json=language == "json")
        for code, language, output in CURL_BLOCK.findall(read(page))
    ]


def python_examples(page: Path) -> list[Example]:
    """Return the Python programs of a page; `output` is empty if the page shows none."""
    return [Example(code=code, output=output) for code, output in PYTHON_BLOCK.findall(read(page))]


def without_volatile_values(text: str) -> str:
    """Return an output with a placeholder for each value that differs between runs."""
    for name, pattern in VOLATILE.items():
        text = re.sub(pattern, name, text)
    return text.strip("\n")


def comparable(output: str, *, is_json: bool) -> object:
    """Return an output in the form in which two runs are equal."""
    text = without_volatile_values(output)
    return json.loads(text) if is_json else text


def links(page: Path) -> list[tuple[str, str]]:
    """Return path and anchor of each link of a page to a file of the repository."""
    found = re.findall(r"\]\(([^)\s]+)\)", CODE_BLOCK.sub("", read(page)))
    parts = [link.partition("#") for link in found if "://" not in link]
    return [(path, anchor) for path, _, anchor in parts]


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes for the headings of a page."""
    seen: Counter[str] = Counter()
    found: set[str] = set()
    for _, heading in HEADING.findall(CODE_BLOCK.sub("", read(page))):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        found.add(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
        seen[anchor] += 1
    return found


def quoted_messages(page: str) -> list[str]:
    """Return the log lines and messages that a page quotes, one in each block of text."""
    blocks = re.findall(r"^ *```text\n(.*?)\n *```$", read(page), re.DOTALL | re.MULTILINE)
    return [block.strip() for block in blocks]


@cache
def messages_in_code() -> frozenset[str]:
    """Return a pattern for each text in the source; a placeholder matches any value."""
    return frozenset(
        pattern
        for path in (ROOT / "src").rglob("*.py")
        for pattern in _patterns(ast.parse(path.read_text(encoding="utf-8")))
    )


def is_message_of_code(message: str) -> bool:
    """Return whether the source contains a message; the command line may add its name."""
    text = message.removeprefix("groqchat: ")
    return any(re.fullmatch(pattern, text, re.DOTALL) for pattern in messages_in_code())


def _patterns(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        texts = [part.value if isinstance(part, ast.Constant) else None for part in parts]
        literal = [text for text in texts if isinstance(text, str)]
        if sum(map(len, literal)) >= MIN_MESSAGE_CHARS:
            yield "".join(".+" if text is None else _pattern(str(text)) for text in texts)


def _pattern(text: str) -> str:
    return ".+".join(map(re.escape, PLACEHOLDER.split(text)))
