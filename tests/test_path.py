"""Length of the path through the package: modules of a run, and frames from the command line to a shortcut."""

import sys
import threading
from pathlib import Path
from types import FrameType

import jax
import pytest
from resnet_jax import cli

from conftest import ROOT

PACKAGE = f"{ROOT / 'resnet_jax'}/"


@pytest.mark.slow
def test_path_from_the_command_line_to_the_loss_is_short(digits_dir: str, tmp_path: Path) -> None:
    modules: dict[str, str] = {}
    before_loss: list[str] = []
    frames: list[str] = []

    def record(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(PACKAGE):
            return
        name = code.co_filename.removeprefix(PACKAGE)
        modules.setdefault(name, code.co_qualname)
        if (name, code.co_name) == ("training/step.py", "losses") and not before_loss:
            before_loss.extend(modules)
        if (name, code.co_name) == ("models/shortcuts.py", "__call__") and not frames:
            caller: FrameType | None = frame
            while caller:
                if caller.f_code.co_filename.startswith(PACKAGE):
                    frames.append(f"{caller.f_code.co_filename.removeprefix(PACKAGE)}:{caller.f_code.co_qualname}")
                caller = caller.f_back

    command = ["train", f"{ROOT}/tests/tiny_experiment.py:tiny", "--steps", "2", "--data-dir", digits_dir]
    # Imports, whose class bodies would count as calls.
    cli.main([*command, "--workdir", str(tmp_path / "imports")])
    jax.clear_caches()
    threading.setprofile(record)
    sys.setprofile(record)
    try:
        cli.main([*command, "--workdir", str(tmp_path / "run")])
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    assert before_loss
    assert len(before_loss) <= 25, " ".join(before_loss)
    assert len(modules) <= 30, " ".join(modules)
    assert 0 < len(frames) <= 14, frames
