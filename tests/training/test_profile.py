"""``train --profile``: a trace that viewers read, and a table of the dearest operations."""

from pathlib import Path

import pytest

from resnet_jax import cli
from resnet_jax.training import profile
from resnet_jax.training.profile import Operation

EXPERIMENT = f"{Path(__file__).parents[1] / 'tiny_experiment.py'}:tiny"


def test_the_table_has_the_dearest_first_with_their_share() -> None:
    """1.5 and 0.5 s: three quarters and one."""
    text = profile.table([Operation("convolution", 1.5, 3), Operation("copy", 0.5, 20)])
    assert [line.split() for line in text.splitlines()[1:]] == [
        ["1,500.00", "75.0%", "3", "convolution"],
        ["500.00", "25.0%", "20", "copy"],
    ]


@pytest.mark.slow
def test_a_run_is_traced_and_scores_as_without(tmp_path: Path, digits_dir: str) -> None:
    cli.main(["train", EXPERIMENT, "--workdir", str(tmp_path / "run"), "--data-dir", digits_dir, "--profile", "2"])
    folder = tmp_path / "run" / "profile"
    assert list(folder.rglob("*.xplane.pb"))
    found = profile.operations(folder)
    assert found
    assert found == sorted(found, key=lambda each: -each.seconds)
    assert (folder / profile.TABLE).read_text().startswith("          ms   share")


def test_bad_input_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", EXPERIMENT, "--workdir", str(tmp_path), "--profile", "-1"])
    assert "--profile is -1" in capsys.readouterr().err
