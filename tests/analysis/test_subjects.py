"""Every analysis as a command on a run; names, images and options of the analyzed networks."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
from resnet_jax import cli
from resnet_jax.analysis import depth, identity, landscape, lesions, paths, subjects
from resnet_jax.analysis.subjects import Options
from resnet_jax.errors import UserError

from test_cli import fails


@pytest.mark.parametrize(
    ("name", "options", "rows", "label"),
    [
        ("identity", [], 3, "distance from the identity"),
        ("landscape", ["--points", "3"], 9, "direction 2"),
        ("lesions", ["--draws", "2"], 1 + 3 + 2 * 2, "error (%)"),
        pytest.param("paths", ["--draws", "2"], 4 * 2, "share of the gradient (%)", marks=pytest.mark.slow),
        ("responses", [], 7, "standard deviation of the response"),
    ],
)
def test_command_prints_and_writes_its_finding(
    name: str, options: list[str], rows: int, label: str, short_run: Path, digits_dir: str, tmp_path: Path, capsys: Any
) -> None:
    words = ["analyze", name, str(short_run), "--images", "50", "--data-dir", digits_dir, "--to", str(tmp_path), *options]
    cli.main([*words, "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / f"{name}.json").read_text())
    assert "50 images" in printed["caption"]
    assert printed["tables"][0]["rows"][0][:2] == ["run", 50]
    written = list(csv.DictReader((tmp_path / f"{name}.csv").read_text().splitlines()))
    texts = [{column: "nan" if value is None else str(value) for column, value in row.items()} for row in printed["rows"]]
    assert (len(written), written) == (rows, texts)
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert label in (tmp_path / f"{name}.svg").read_text()


def test_options_reject_numbers_out_of_range() -> None:
    cases: list[tuple[Any, str, list[float]]] = [
        (lesions.Options, "draws", [0]),
        (lesions.Options, "exchanged", [-1]),
        (paths.Options, "batch_size", [0]),
        (identity.Options, "change", [0.0]),
        (landscape.Options, "points", [4, 1]),
        (landscape.Options, "reach", [0.0, math.nan]),
        (depth.Options, "threshold", [100.0, math.nan]),
    ]
    for options, name, value in ((options, name, value) for options, name, values in cases for value in values):
        with pytest.raises(UserError, match=f"^{name} must be .* got {value}"):
            options(sources=(), **{name: value})


def test_commands_reject_bad_input(short_run: Path, digits_dir: str, cifar10: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert "0, 2, 4" in fails(capsys, "analyze", "responses", str(short_run), "--data-dir", digits_dir, "--steps", "3")
    with pytest.raises(UserError, match="neither a run nor"):
        subjects.load(short_run / "nothing", Options(sources=()))
    assert subjects.short_names([Path("/a/x/seed-0"), Path("/a/y/seed-0")]) == ["x/seed-0", "y/seed-0"]
    with pytest.raises(UserError, match=r"images of \(32, 32, 3\) .* the network takes \(8, 8, 1\)"):
        subjects.load(short_run, Options(sources=(), data="cifar10"))
