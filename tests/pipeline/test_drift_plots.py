"""Pictures of drift; what matters to a reader is asked of the figure that was saved."""

import io
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.dates import num2date
from matplotlib.figure import Figure
from PIL import Image

from pipeline.drift_plots import COLUMNS, MAX_PANELS, draw_shares, draw_times
from pipeline.drift_statistics import DriftConfig, Finding, Spread, compare
from pipeline.score_plots import BLUE, GRAY, ORANGE

FEW = DriftConfig(min_images=3)
DAY = datetime(2026, 11, 20, 8)


def drawn(draw, *words: Any) -> tuple[bytes, Figure]:
    """What a function gave, and the figure that it saved."""
    figures = []
    save = Figure.savefig

    def keep(figure: Figure, *words: Any, **options: Any) -> None:
        figures.append(figure)
        save(figure, *words, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", keep)
        data = draw(*words)
    (figure,) = figures
    return data, figure


def shares_of(recent: Mapping[str, Sequence[float]], training: Mapping[str, Sequence[float]]) -> tuple[bytes, Figure]:
    """The picture of a comparison; `height` must be among the quantities."""
    new, old = ({name: np.array(row, dtype=np.float64) for name, row in rows.items()} for rows in (recent, training))
    return drawn(draw_shares, compare(new, old, FEW).findings, new, old)


def lines(axes: Any) -> dict[str, np.ndarray]:
    """Colour -> the points of the line that has it."""
    return {to_hex(line.get_color()): np.asarray(line.get_xydata()) for line in axes.lines}


def finding(name: str = "brightness", *, training: Spread | None = None) -> Finding:
    return Finding(
        name=name, distance=0.5, p_value=0.5, is_drift=False, recent=None, training=training, unseen=None
    )  # fmt: skip


def test_a_picture_is_a_png_with_a_legend_and_a_panel_a_quantity() -> None:
    data, figure = shares_of({"height": [1, 2, 3], "width": [1, 2, 3]}, {"height": [1, 2, 3], "width": [7, 8, 9]})
    with Image.open(io.BytesIO(data)) as picture:
        assert (picture.format, picture.width) == ("PNG", 1248)
    panels = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in panels] == ["width: 1.00", "height: 0.00"]
    # Panels that have no quantity show no axes.
    assert len(figure.axes) == COLUMNS
    legend = panels[0].get_legend()
    colours = [to_hex(line.get_color()) for line in legend.get_lines()]
    assert dict(zip([text.get_text() for text in legend.texts], colours, strict=True)) == {
        "training": BLUE,
        "recent": ORANGE,
    }


def test_what_drifted_has_a_title_in_the_colour_of_recent_images() -> None:
    same = [float(number) for number in range(50)]
    _, figure = shares_of({"height": same, "width": [value + 90 for value in same]}, {"height": same, "width": same})
    assert [to_hex(axes.title.get_color()) for axes in figure.axes[:2]] == [ORANGE, "#000000"]


@given(
    st.lists(st.integers(-9, 9), min_size=3, max_size=12),
    st.lists(st.integers(-9, 9), min_size=3, max_size=12),
)
@settings(deadline=None, max_examples=12)
def test_the_line_between_the_curves_is_as_long_as_the_distance(recent: list[int], training: list[int]) -> None:
    new, old = ({"height": np.array(values, dtype=np.float64)} for values in (recent, training))
    (found,) = compare(new, old, FEW).findings
    _, figure = drawn(draw_shares, [found], new, old)
    (place, low), (same_place, high) = lines(figure.axes[0])[GRAY]
    assert place == same_place
    assert abs(high - low) == pytest.approx(found.distance)
    # It ends on the curves: at the share of images up to there.
    assert (low, high) == pytest.approx([np.mean(values["height"] <= place) for values in (old, new)])
    assert figure.axes[0].get_ylim() == (0, 1)


def test_the_order_of_images_changes_no_byte() -> None:
    recent, training = [3.0, 1.0, 2.0, 2.0], [5.0, 2.0, 4.0]
    picture, _ = shares_of({"height": recent}, {"height": training})
    assert shares_of({"height": recent[::-1]}, {"height": sorted(training)})[0] == picture
    assert shares_of({"height": training}, {"height": recent})[0] != picture


def test_images_that_are_all_alike_are_drawn_without_a_gap() -> None:
    """A constant channel. Warnings of an axis without width would be errors here."""
    _, figure = shares_of({"height": [512] * 4}, {"height": [512] * 5})
    (_, low), (_, high) = lines(figure.axes[0])[GRAY]
    assert low == high
    left, right = figure.axes[0].get_xlim()
    assert left < 512 < right


def test_a_quantity_that_recent_images_lack_shows_the_training_alone() -> None:
    rows = {"height": [1, 2, 3], "share of ring": [np.nan] * 3}
    _, figure = shares_of(rows, {"height": [1, 2, 3], "share of ring": [0.1, 0.2, np.nan]})
    panel = figure.axes[1]
    assert panel.get_title() == "share of ring: undefined"
    assert set(lines(panel)) == {BLUE}
    # Undefined values are no images of value nothing.
    assert lines(panel)[BLUE][-1].tolist() == [0.2, 1]


def test_more_quantities_than_can_be_read_are_left_to_the_table() -> None:
    rows = {"height": [1.0, 2.0, 3.0], **{f"share of {number}": [0.1, 0.2, 0.3] for number in range(MAX_PANELS)}}
    _, figure = shares_of(rows, rows)
    assert len(figure.axes) == MAX_PANELS == len([axes for axes in figure.axes if axes.axison])


def test_by_time_there_is_a_point_for_each_defined_image_and_a_band_of_nine_of_ten_training_images() -> None:
    spread = Spread(images=9, low=0.25, median=0.5, high=0.875)
    times = [DAY + timedelta(hours=number) for number in range(3)]
    _, figure = drawn(draw_times, finding(training=spread), np.array([0.1, np.nan, 0.9]), times)
    (axes,) = figure.axes
    points = axes.collections[0].get_offsets()
    assert [(num2date(day).replace(tzinfo=None), value) for day, value in points] == [(times[0], 0.1), (times[2], 0.9)]
    (band,) = axes.patches
    assert (band.get_y(), band.get_y() + band.get_height()) == (0.25, 0.875)
    assert lines(axes)[BLUE][:, 1].tolist() == [0.5, 0.5]
    assert axes.get_ylabel() == "brightness"


def test_by_time_without_training_values_there_is_no_band() -> None:
    _, figure = drawn(draw_times, finding(), np.array([0.1, 0.2]), [DAY, DAY + timedelta(days=1)])
    assert (len(figure.axes[0].patches), len(figure.axes[0].lines)) == (0, 0)


@pytest.mark.parametrize(
    ("name", "shown"),
    [("$B_{$", r"\$B_{\$"), ("a $10 $x$", r"a \$10 \$x\$"), ("n" * 36, "n" * 36), ("n" * 37, "n" * 35 + "…")],
)
def test_a_class_may_be_called_anything(name: str, shown: str) -> None:
    """Two dollars would begin a formula, which many names are not, and long names run over each other."""
    _, figure = shares_of({"height": [1, 2, 3], name: [1, 2, 3]}, {"height": [1, 2, 3], name: [7, 8, 9]})
    assert figure.axes[0].get_title() == f"{shown}: 1.00"
    _, figure = drawn(draw_times, finding(name), np.array([0.1]), [DAY])
    assert figure.axes[0].get_ylabel() == shown


def test_images_of_one_second_lie_in_the_middle_of_a_day() -> None:
    """A night's few images may be predicted in one."""
    _, figure = drawn(draw_times, finding(), np.array([0.1, 0.2]), [DAY, DAY])
    left, right = (num2date(day).replace(tzinfo=None) for day in figure.axes[0].get_xlim())
    assert (DAY - left, right - DAY) == (timedelta(hours=12), timedelta(hours=12))
