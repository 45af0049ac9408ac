"""``resnet-jax plan`` in this process, with the compiling one replaced."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_printed import ROW

from resnet_jax import cli
from resnet_jax.plan import offline

EXPERIMENT = f"{Path(__file__).parents[1] / 'tiny_experiment.py'}:tiny"


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline, "installed", lambda platform: True)


def compiling(monkeypatch: pytest.MonkeyPatch, lines: list[str], code: int = 0) -> list[list[str]]:
    """Stands in for the process that compiles: prints these lines. Returns the arguments that it is given."""
    asked: list[list[str]] = []
    real = subprocess.Popen

    def start(words: list[str], **options: Any) -> Any:
        if words[1:3] != ["-m", "resnet_jax.plan.command"]:
            return real(words, **options)
        asked.append(words[3:])
        assert options["env"]["JAX_PLATFORMS"] == "cpu"
        script = f"import sys; print({chr(10).join(lines)!r}); print('the compiler broke', file=sys.stderr); sys.exit({code})"
        return real([sys.executable, "-c", script], **options)

    monkeypatch.setattr(subprocess, "Popen", start)
    return asked


def test_the_rows_are_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = compiling(monkeypatch, ['says "compiled in 3 s"', "noise of a compiler", "found " + json.dumps([ROW])])
    arguments = [EXPERIMENT, "--target", "tpu:v5e:4x4", "--images-per-second", "100"]
    cli.main(["plan", *arguments])
    shown = capsys.readouterr()
    assert asked == [arguments]
    assert "34,568" in shown.out
    assert "images/s would need" in shown.out
    assert "compiled in 3 s" in shown.err


def test_json_says_with_what_it_was_compiled(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    compiling(monkeypatch, ["found " + json.dumps([ROW])])
    file = tmp_path / "new" / "plan.json"
    cli.main(["plan", EXPERIMENT, "--target", "tpu:v5e:4x4", "--json", "--output", str(file)])
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(file.read_text())
    assert (found["kind"], found["experiment"], found["rows"]) == ("plan", "tiny", [ROW])
    assert found["command"].startswith("resnet-jax plan ")
    assert {"jax", "jaxlib"} <= found["versions"].keys()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--target", "tpu:v9:4x4"], "did you mean"),
        (["--target", "tpu:v5e:16x16"], "batch_size is 64, which the 256 chips"),
        (["--target", "gpu:h100", "--examples", "0"], "--examples is 0"),
        (["--target", "gpu:h100", "--images-per-second", "0"], "--images-per-second is 0"),
    ],
)
def test_bad_input_ends_before_anything_is_compiled(
    options: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = compiling(monkeypatch, [])
    with pytest.raises(SystemExit) as stopped:
        cli.main(["plan", EXPERIMENT, *options])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
    assert not asked


def test_what_the_compiling_process_refuses_is_bad_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    compiling(monkeypatch, ['refuses "these devices cannot share"'])
    with pytest.raises(SystemExit) as stopped:
        cli.main(["plan", EXPERIMENT, "--target", "gpu:h100"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "resnet-jax: these devices cannot share\n"


def test_a_compiler_that_breaks_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    compiling(monkeypatch, [], code=7)
    with pytest.raises(RuntimeError, match=r"(?s)exit code 7.*the compiler broke"):
        cli.main(["plan", EXPERIMENT, "--target", "gpu:h100"])
