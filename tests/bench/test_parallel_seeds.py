"""Seeds together are measured in turn with a seed alone, and held against it round by round."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from resnet_jax import cli, models
from resnet_jax.bench import parallel_seeds as seeds

TINY = models.cifar_architecture(8, input_shape=(8, 8, 1), features=(4, 4, 4))


@pytest.mark.slow
def test_rows_are_a_seed_alone_then_vectorised_then_on_devices_of_their_own() -> None:
    rows = seeds.measure(TINY, [1, 2], batch_size=4, rounds=2)
    assert [(row["seeds"], row["how"]) for row in rows] == [(1, "alone"), (2, "vmap"), (2, "devices")]
    for row in rows:
        assert 0 < row["seconds_least"] <= row["seconds"] <= row["seconds_most"]
        np.testing.assert_allclose(row["images_per_second"] * row["seconds"], 4 * row["seeds"])
    assert rows[0]["throughput"] == 1


def test_more_seeds_than_devices_are_vectorised_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert seeds._ways([1, 2, 4]) == [(1, "alone"), (2, "vmap"), (4, "vmap")]


@pytest.mark.slow
def test_throughput_is_the_median_of_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seeds in 3, 8 and 10 s where one takes 3, 2 and 10: 2 x 3/3, 2 x 2/8, 2 x 10/10 of one after another; the median is 2."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(seeds.turns, "interleaved", lambda contestants, rounds: [[3, 2, 10], [3, 8, 10]])
    alone, both = seeds.measure(TINY, [2], batch_size=4, rounds=3)
    assert (alone["seconds"], both["seconds"], both["throughput"]) == (3, 8, 2)


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "seeds.json"
    small = ["--depth", "8", "--input-shape", "8", "8", "1", "--batch-size", "2", "--rounds", "1", "--seeds", "1"]
    cli.main(["bench", "seeds", *small, "--output", str(output)])
    assert "alone" in capsys.readouterr().out
    written = json.loads(output.read_text())
    assert (written["benchmark"], [row["how"] for row in written["rows"]]) == ("seeds", ["alone"])
    assert written["command"].startswith("resnet-jax bench seeds --depth 8 --input-shape 8 8 1")
    with pytest.raises(SystemExit):
        cli.main(["bench", "seeds", "--seeds", "0"])
    assert "give numbers of at least 1" in capsys.readouterr().err
