"""The figure of errors: every cell readable, whatever the errors; and SVG that harms no page."""

import itertools
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

import pytest
from made_up_runs import experiment, result

from resnet_jax.studies import figures
from resnet_jax.studies.cells import Cell, Run

MADE = experiment("made up", 20)


def cell(name: str, *values: float | None, diverged: Sequence[int] = ()) -> Cell:
    """Seeds 0, 1, ... with these errors; None: not finished."""
    return Cell(
        name,
        [
            Run(seed, None if value is None else result(MADE, seed, value, diverged_at_step=7 if seed in diverged else None), Path())
            for seed, value in enumerate(values)
        ],
    )


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def markers(svg: str, colour: str) -> list[tuple[float, float]]:
    """Where markers of a colour stand: ticks are markers too, in the page's ink."""
    found = re.findall(r'<use [^>]*?x="([\d.]+)" y="([\d.]+)" style="([^"]*)"', svg)
    return [(float(x), float(y)) for x, y, style in found if colour in style]


def seeds(svg: str) -> list[float]:
    return [x for x, _ in markers(svg, "--c0")]


def test_every_seed_is_a_dot_and_every_cell_says_its_numbers() -> None:
    svg = figures.error_by_cell([cell("first", 6.0, 8.0), cell("second", 7.0), cell("not begun", None)], {})
    assert len(seeds(svg)) == 3
    # (6, 8): mean 7, deviation sqrt(1 + 1).
    assert {"first", "7.00 ± 1.41", "second", "7.00"} < set(texts(svg))
    assert "not begun" not in texts(svg)


def test_equal_errors_of_several_seeds_stay_several_dots() -> None:
    points = markers(figures.error_by_cell([cell("same", 5.0, 5.0, 5.0)], {}), "--c0")
    assert len({x for x, _ in points}) == 1
    assert len({y for _, y in points}) == 3


def test_errors_near_each_other_are_on_a_linear_axis() -> None:
    svg = figures.error_by_cell([cell("a", 2.0), cell("b", 4.0), cell("c", 6.0)], {})
    first, second, third = seeds(svg)
    assert second - first == pytest.approx(third - second, abs=0.01)
    assert not any("logarithmic" in text for text in texts(svg))


def test_errors_from_a_tenth_to_a_hundred_are_on_a_logarithmic_axis() -> None:
    svg = figures.error_by_cell([cell("a", 0.1), cell("b", 1.0), cell("c", 10.0), cell("d", 100.0)], {})
    at = seeds(svg)
    for nearer, further in itertools.pairwise(at):
        assert further - nearer == pytest.approx(at[1] - at[0], abs=0.01)
    assert {"0.1", "1", "10", "100"} < set(texts(svg))


def test_an_error_of_zero_has_its_place_left_of_all_others() -> None:
    svg = figures.error_by_cell([cell("a", 0.0), cell("b", 0.2), cell("c", 50.0)], {})
    zero, least, _ = seeds(svg)
    assert 0 < zero < least
    assert "0" in texts(svg)


@pytest.mark.parametrize("values", [(0.0,), (0.0, 0.0), (5.0,), (100.0,), (99.9, 100.0), (0.01, 0.02)])
def test_no_errors_are_too_few_or_too_equal_to_be_shown(values: tuple[float, ...]) -> None:
    svg = figures.error_by_cell([cell("a", *values)], {})
    width = float(ET.fromstring(svg).attrib["viewBox"].split()[2])
    assert len(seeds(svg)) == len(values)
    assert all(0 < x < width for x in seeds(svg))


def test_a_line_at_20_percent_only_where_a_cell_failed() -> None:
    assert not any("fail" in text for text in texts(figures.error_by_cell([cell("a", 19.9)], {})))
    failing = figures.error_by_cell([cell("a", 7.0), cell("b", 60.0)], {})
    assert any("fail: above 20 %" in text for text in texts(failing))


def test_a_seed_that_diverged_is_a_cross_in_ink() -> None:
    svg = figures.error_by_cell([cell("a", 60.0, 100.0, diverged=[1])], {})
    assert len(seeds(svg)) == 1


def test_published_errors_are_hollow_diamonds_on_the_row_of_their_cell() -> None:
    svg = figures.error_by_cell([cell("a", 6.0), cell("b", 7.0)], {"b": [6.43, 6.61]})
    diamonds = markers(svg, "--c1")
    assert len(diamonds) == 2
    assert {y for _, y in diamonds} == {markers(svg, "--c0")[1][1]}
    styles = re.findall(r'<use [^>]*style="([^"]*--c1[^"]*)"', svg)
    assert all("fill-opacity: 0" in style for style in styles)


def test_the_figure_grows_with_the_cells() -> None:
    heights = [
        float(ET.fromstring(figures.error_by_cell([cell(f"cell {n}", 5.0 + n) for n in range(count)], {})).attrib["viewBox"].split()[3])
        for count in (2, 12, 22)
    ]
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1])
    assert heights[1] - heights[0] > 10 * 20  # points a cell: two lines of type


def test_nothing_finished_is_no_figure() -> None:
    assert figures.error_by_cell([cell("a", None)], {}) == ""


def test_a_name_is_text_whatever_it_says() -> None:
    names = ["$x^2$ & <b>", "日本語", "x" * 200]
    svg = figures.error_by_cell([cell(name, 5.0) for name in names], {})
    assert {"$x^2$ & <b>", "日本語"} < set(texts(svg))
    (long,) = (text for text in texts(svg) if "xx" in text)
    assert len(long) <= figures.LONGEST_NAME
    assert "…" in long


def test_svg_brings_no_style_metadata_or_common_identifiers_into_the_page() -> None:
    svg = figures.error_by_cell([cell("a", 5.0, 6.0)], {})
    assert "<style" not in svg
    assert "<metadata" not in svg
    identifiers = re.findall(r' id="([^"]*)"', svg)
    assert identifiers
    assert all(identifier.startswith("errors-") for identifier in identifiers)
    assert set(re.findall(r'(?:href="|url\()#([^")]*)', svg)) <= set(identifiers)
    assert 'role="img"' in svg
    assert "aria-label=" in svg
    assert figures.INK not in svg


def test_drawn_twice_it_is_the_same() -> None:
    assert figures.error_by_cell([cell("a", 5.0, 60.0)], {}) == figures.error_by_cell([cell("a", 5.0, 60.0)], {})
