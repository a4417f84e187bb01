"""What every table and every figure of the project is written with."""

import pytest
from matplotlib.cbook import is_math_text
from PIL import Image

from utils.errors import UserError
from utils.figure import new_figure, save, tick_label
from utils.table import align, markdown

ROWS = [["", "drift", "seams"], ["native", "2.07", "1"], ["latentmem", "0.67", ""]]


def test_columns_are_aligned_under_their_heading():
    assert align(ROWS).splitlines() == [
        "           drift  seams",
        "-----------------------",
        "native      2.07      1",
        "latentmem   0.67",
    ]


def test_a_markdown_table_has_as_many_columns_as_its_heading():
    lines = markdown([*ROWS, ["a|b", "1", "2"]]).splitlines()
    assert lines[:3] == ["|  | drift | seams |", "|---|---|---|", "| native | 2.07 | 1 |"]
    assert lines[-1] == r"| a\|b | 1 | 2 |"


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError):
        align([*ROWS, ["short"]])


DOLLARS = ["says $$ SALE $$ above", "graffiti $# and $% on it", r"C:\new\$x\$", "$5", r"\$"]


@pytest.mark.parametrize("text", DOLLARS)
def test_dollars_are_no_formula_wherever_a_figure_shows_text(tmp_path, text):
    figure = new_figure(3, 2)
    axes = figure.subplots()
    axes.plot([1, 1000], [1, 2], label=text)
    axes.set(title=text, xlabel=text, ylabel=text, xscale="log")
    axes.set_yticks([1, 2], [tick_label(text), "plain"])
    axes.text(1, 1, text)
    axes.legend()
    figure.suptitle(text)
    save(figure, tmp_path / "new" / "figure.png", dpi=50)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["figure.png"]
    assert Image.open(tmp_path / "new" / "figure.png").size == (150, 100)
    shown = [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts, *axes.get_legend().get_texts()]
    assert [one.get_text() for one in shown] == [text] * 5
    assert not any(one.get_parse_math() for one in shown)
    assert not is_math_text(axes.get_yticklabels()[0].get_text())
    power = axes.get_xticklabels()[1]
    assert power.get_parse_math() and is_math_text(power.get_text())  # powers of ten stay formulas


def test_a_figure_that_cannot_be_written_is_one_line(tmp_path):
    figure = new_figure(3, 2)
    figure.subplots()
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        save(figure, tmp_path / "folder.png")
