"""Plots of results. Needs matplotlib, which `jaxserve[bench]` installs."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any

from jaxserve.errors import ConfigError

# Palette for all kinds of colour vision (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "svg.hashsalt": "jaxserve",  # the same data makes the same file
}


class Style(Enum):
    """Style of a line's points."""

    POINTS_AND_LINES = auto()
    LINES = auto()
    POINTS = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """One diagram: lines by their names in the legend, and axis labels with units.

    A line is a list of points. labels: texts beside the points of a line. log_x: logarithmic x axis
    to base 2. level: a horizontal reference line and its name.
    """

    title: str
    x_label: str
    y_label: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    labels: Mapping[str, Sequence[str]] | None = None
    log_x: bool = False
    log_y: bool = False
    level: tuple[float, str] | None = None
    style: Style = Style.POINTS_AND_LINES


def draw(path: Path, diagrams: Sequence[Axes], *, title: str, about: str) -> None:
    """Plot diagrams side by side to an SVG or PNG file, depending on its suffix.

    about: line below the title with model, machine and versions.
    """
    pyplot = require_pyplot()
    with pyplot.rc_context(STYLE):
        figure, places = pyplot.subplots(
            1, len(diagrams), figsize=(max(6.5, 3.8 * len(diagrams)), 3.6), squeeze=False
        )
        for place, diagram in zip(places[0], diagrams, strict=True):
            _draw_axes(place, diagram)
        figure.suptitle(title, fontsize=12, fontweight="bold", x=0.01, ha="left")
        figure.text(0.01, 0.905, about, fontsize=8, color="#555555", ha="left")
        figure.tight_layout(rect=(0, 0, 1, 0.97))
        path.parent.mkdir(parents=True, exist_ok=True)
        # No date, so that a plot drawn again is the same file.
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, dpi=130, metadata=metadata)
        pyplot.close(figure)


def require_pyplot() -> Any:
    """Return matplotlib's pyplot without a display. Raises ConfigError if it is not installed."""
    try:
        importlib.import_module("matplotlib").use("agg")
        return importlib.import_module("matplotlib.pyplot")
    except ModuleNotFoundError as error:
        raise ConfigError("plots need matplotlib: pip install 'jaxserve[bench]'") from error


def _draw_axes(place: Any, diagram: Axes) -> None:
    for (name, points), colour in zip(diagram.lines.items(), COLOURS, strict=False):
        xs, ys = [x for x, _ in points], [y for _, y in points]
        match diagram.style:
            case Style.POINTS_AND_LINES:
                place.plot(xs, ys, marker="o", markersize=4, color=colour, label=name)
            case Style.LINES:
                place.plot(xs, ys, color=colour, label=name)
            case Style.POINTS:  # in pixels: as shapes, many points make a large SVG
                place.scatter(xs, ys, s=3, color=colour, label=name, rasterized=True)
        for text, x, y in zip((diagram.labels or {}).get(name, ()), xs, ys, strict=False):
            place.annotate(
                text, (x, y), textcoords="offset points", xytext=(5, 4), fontsize=8, color=colour
            )
    if diagram.level is not None:
        height, name = diagram.level
        place.axhline(height, color="#777777", linestyle="--", linewidth=1, label=name)
    if diagram.log_x:
        place.set_xscale("log", base=2)
        ticks = sorted({x for points in diagram.lines.values() for x, _ in points})
        place.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        place.minorticks_off()
    if diagram.log_y:
        place.set_yscale("log")
        ticker = importlib.import_module("matplotlib.ticker")
        place.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        place.yaxis.set_major_formatter("{x:g}")
        place.yaxis.set_minor_formatter("")
    else:
        place.set_ylim(bottom=0)
    place.set_title(diagram.title, loc="left")
    place.set_xlabel(diagram.x_label)
    place.set_ylabel(diagram.y_label)
    if len(diagram.lines) > 1 or diagram.level is not None:
        place.legend(fontsize=8)
