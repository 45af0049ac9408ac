"""Short names for what is looked at."""

from pathlib import Path

import pytest

from resnet_jax.errors import UserError
from resnet_jax.lab import subjects
from resnet_jax.lab.looking import Looking


def test_names_are_as_long_as_it_takes_to_tell_them_apart() -> None:
    assert subjects.names([Path("/a/x/seed-0"), Path("/a/y/seed-0")]) == ["x/seed-0", "y/seed-0"]
    assert subjects.names([Path("/a/x"), Path("/a/y")]) == ["x", "y"]
    assert subjects.names([Path("/a/x"), Path("/a/x")]) == ["x", "x (1)"]


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a run nor a file of weights"):
        subjects.load(tmp_path / "nothing", Looking(sources=()))


def test_images_of_another_size_are_refused(short_run: Path, cifar10: object) -> None:
    with pytest.raises(UserError, match=r"images of cifar10 have the shape \(32, 32, 3\), and the network takes \(8, 8, 1\)"):
        subjects.load(short_run, Looking(sources=(), data="cifar10"))
