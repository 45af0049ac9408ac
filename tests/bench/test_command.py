"""The command line of the benchmarks: a table, a JSON file, and one sentence for what cannot be."""

import json
from pathlib import Path

import pytest

from resnet_jax import cli


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["bench", *arguments])
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_a_benchmark_prints_its_table_and_writes_it_with_device_and_versions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "steps.json"
    cli.main(["bench", "execution", "--depths", "8", "--batch-size", "2", "--rounds", "1", "--blocks", "scan", "--output", str(output)])
    printed, written = capsys.readouterr().out, json.loads(output.read_text())
    assert "images/s" in printed
    assert written["benchmark"] == "execution"
    assert written["devices"]["backend"] == "cpu"
    assert {"jax", "jaxlib", "flax"} <= written["versions"].keys()
    (row,) = written["rows"]
    assert (row["network"], row["depth"], row["blocks"], row["convolution"]) == ("cifar_resnet", 8, "scan", "explicit")


def test_help_names_every_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["bench", "--help"])
    assert stopped.value.code == 0
    assert {"compile", "step", "execution", "dispatch", "seeds", "run", "flags", "program", "input"} <= set(capsys.readouterr().out.split())


def test_bad_input_is_refused_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean compile" in refused(capsys, "compil")
    assert "--rounds is 0" in refused(capsys, "step", "--rounds", "0")
    assert "not 6n+2" in refused(capsys, "execution", "--depths", "9")
    assert "no network is called 'cifar_resnett'" in refused(capsys, "step", "--networks", "cifar_resnett")
