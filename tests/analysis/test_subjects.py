"""Names and images of the analyzed networks."""

import math
from pathlib import Path
from typing import Any

import pytest
from resnet_jax.analysis import depth, lesions, paths, subjects
from resnet_jax.analysis.subjects import Options
from resnet_jax.errors import UserError


def test_short_names_tell_paths_apart() -> None:
    assert subjects.short_names([Path("/a/x/seed-0"), Path("/a/y/seed-0")]) == ["x/seed-0", "y/seed-0"]
    assert subjects.short_names([Path("/a/x"), Path("/a/y")]) == ["x", "y"]


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        (lesions.Options, {"draws": 0}),
        (lesions.Options, {"deleted": -1}),
        (lesions.Options, {"exchanged": -1}),
        (lesions.Options, {"images": 0}),
        (paths.Options, {"draws": 0}),
        (paths.Options, {"batch_size": 0}),
        (depth.Options, {"threshold": 100.0}),
        (depth.Options, {"threshold": math.nan}),
    ],
)
def test_options_reject_numbers_out_of_range(options: Any, fields: dict[str, float]) -> None:
    ((name, value),) = fields.items()
    with pytest.raises(UserError, match=f"^{name} must be .* got {value}"):
        options(sources=(), **fields)


def test_load_rejects_missing_sources_and_other_image_sizes(short_run: Path, tmp_path: Path, cifar10: object) -> None:
    with pytest.raises(UserError, match="neither a run nor"):
        subjects.load(tmp_path / "nothing", Options(sources=(tmp_path,)))
    with pytest.raises(UserError, match=r"images of \(32, 32, 3\) .* the network takes \(8, 8, 1\)"):
        subjects.load(short_run, Options(sources=(short_run,), data="cifar10"))
