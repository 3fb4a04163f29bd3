import sys
from pathlib import Path

import pytest

from jaxserve.bench.plots import Axes, draw
from jaxserve.errors import ConfigError

POINTS = {"ours": [(1.0, 2.0), (64.0, 900.0)], "theirs": [(1.0, 1.0)]}
DIAGRAM = Axes(
    title="Speed",
    x_label="load (requests)",
    y_label="time (ms)",
    lines=POINTS,
    labels={"ours": ["slow", "fast"]},
    log_x=True,
    log_y=True,
    level=(50.0, "target"),
)


def test_a_plot_says_what_it_shows(tmp_path: Path) -> None:
    draw(tmp_path / "new" / "a.svg", [DIAGRAM], title="All of it", about="model on machine")
    drawn = (tmp_path / "new" / "a.svg").read_text()
    said = ["All of it", "model on machine", "Speed", "load (requests)", "time (ms)"]
    said += ["ours", "theirs", "target", "slow", "fast", "64"]
    assert [text for text in said if f"<!-- {text} -->" not in drawn] == []


def test_the_same_data_makes_the_same_file(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        draw(tmp_path / name, [DIAGRAM], title="t", about="a")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_a_png_can_be_had(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", [DIAGRAM, DIAGRAM], title="t", about="a")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(
        ConfigError, match=r"plots need matplotlib: pip install 'jaxserve\[bench\]'"
    ):
        draw(tmp_path / "a.svg", [DIAGRAM], title="t", about="a")
