"""Names and images of the analyzed networks."""

from pathlib import Path

import pytest
from resnet_jax.analysis import subjects
from resnet_jax.analysis.subjects import Options
from resnet_jax.errors import UserError


def test_short_names_tell_paths_apart() -> None:
    assert subjects.short_names([Path("/a/x/seed-0"), Path("/a/y/seed-0")]) == ["x/seed-0", "y/seed-0"]
    assert subjects.short_names([Path("/a/x"), Path("/a/y")]) == ["x", "y"]


def test_load_rejects_missing_sources_and_other_image_sizes(short_run: Path, tmp_path: Path, cifar10: object) -> None:
    with pytest.raises(UserError, match="neither a run nor"):
        subjects.load(tmp_path / "nothing", Options(sources=(tmp_path,)))
    with pytest.raises(UserError, match=r"images of \(32, 32, 3\) .* the network takes \(8, 8, 1\)"):
        subjects.load(short_run, Options(sources=(short_run,), data="cifar10"))
