"""The report: one table with ratios and what is aimed at, and a plot."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
BAR_HEIGHT = 26
LABEL_WIDTH = 150
CHART_WIDTH = 460


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One figure, what it is to be, and whether it is."""

    what: str
    figure: str
    aim: str = ""
    met: bool | None = None

    def row(self) -> str:
        """Return a row of a Markdown table."""
        verdict = "" if self.met is None else ("yes" if self.met else "**no**")
        return f"| {self.what} | {self.figure} | {self.aim} | {verdict} |"


def write(
    lines: Sequence[Line],
    matrix: Iterable[str],
    bars: Sequence[tuple[str, float]],
    notes: Sequence[str],
) -> str:
    """Write latest.md and turns.svg and return the table."""
    table = "\n".join(["| what | figure | aim | met |", "|---|---|---|---|", *map(Line.row, lines)])
    plot = "![Turns a second](turns.svg)"
    every = "Turns a second by connections and length of history:"
    text = "\n".join(["# Benchmarks", "", *notes, "", table, "", plot, "", every, "", *matrix, ""])
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "latest.md").write_text(text, encoding="utf-8")
    (RESULTS / "turns.svg").write_text(_svg(bars), encoding="utf-8")
    return table


def _svg(bars: Sequence[tuple[str, float]]) -> str:
    """Return a bar chart that reads on light and dark pages alike."""
    most = max(value for _, value in bars)
    height = BAR_HEIGHT * (len(bars) + 1)
    width = LABEL_WIDTH + CHART_WIDTH + 90
    rows = [
        f'<text x="{LABEL_WIDTH - 8}" y="{top + 16}" text-anchor="end">{name}</text>'
        f'<rect x="{LABEL_WIDTH}" y="{top + 3}" width="{value / most * CHART_WIDTH:.0f}" '
        f'height="{BAR_HEIGHT - 8}" fill="#3b82f6"/>'
        f'<text x="{LABEL_WIDTH + value / most * CHART_WIDTH + 6:.0f}" y="{top + 16}">'
        f"{value:,.0f}</text>"
        for top, (name, value) in zip(range(BAR_HEIGHT, height, BAR_HEIGHT), bars, strict=True)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height + 6}" '
        'font-family="sans-serif" font-size="13" fill="#888">'
        '<text x="0" y="16">Turns a second on one core, 64 connections, 20 messages</text>'
        f"{''.join(rows)}</svg>\n"
    )
