"""The report: a Markdown table of results and targets, a table of all loads, and a bar chart."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
CHART_TITLE = "Turns per second on one core, 64 connections, 20 messages per session"
BAR_HEIGHT = 26
LABEL_WIDTH = 150
CHART_WIDTH = 460


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measurement: its result with the unit, and the target if there is one.

    `met` is None if there is no target, or if this machine cannot reach it.
    """

    measurement: str
    result: str
    target: str = ""
    met: bool | None = None

    def to_markdown(self) -> str:
        """Return a row of a Markdown table."""
        return f"| {self.measurement} | {self.result} | {self.target} | {self._verdict()} |"

    def _verdict(self) -> str:
        if self.met is None:
            return "not judged" if self.target else ""
        return "yes" if self.met else "**no**"


def write(
    rows: Sequence[Row],
    *,
    introduction: Iterable[str],
    load_table: Iterable[str],
    bars: Sequence[tuple[str, float]],
) -> str:
    """Write latest.md and turns.svg, and return the table of the results."""
    table = "\n".join(
        [
            "| Measurement | Result | Target | Met |",
            "|---|---|---|---|",
            *map(Row.to_markdown, rows),
        ]
    )
    parts = [
        "# Benchmarks",
        *introduction,
        table,
        f"![{CHART_TITLE}](turns.svg)",
        "Turns per second with other numbers of connections and of messages per session:",
        "\n".join(load_table),
    ]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "latest.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    (RESULTS / "turns.svg").write_text(_svg(bars), encoding="utf-8")
    return table


def _svg(bars: Sequence[tuple[str, float]]) -> str:
    """Return a bar chart in colours that are readable on light and on dark pages."""
    highest = max(value for _, value in bars)
    height = BAR_HEIGHT * (len(bars) + 1)
    width = LABEL_WIDTH + CHART_WIDTH + 90
    rows = [
        f'<text x="{LABEL_WIDTH - 8}" y="{top + 16}" text-anchor="end">{name}</text>'
        f'<rect x="{LABEL_WIDTH}" y="{top + 3}" width="{value / highest * CHART_WIDTH:.0f}" '
        f'height="{BAR_HEIGHT - 8}" fill="#3b82f6"/>'
        f'<text x="{LABEL_WIDTH + value / highest * CHART_WIDTH + 6:.0f}" y="{top + 16}">'
        f"{value:,.0f}</text>"
        for top, (name, value) in zip(range(BAR_HEIGHT, height, BAR_HEIGHT), bars, strict=True)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height + 6}" '
        'font-family="sans-serif" font-size="13" fill="#888">'
        f'<text x="0" y="16">{CHART_TITLE}</text>'
        f"{''.join(rows)}</svg>\n"
    )
