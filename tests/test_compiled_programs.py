"""Where compiled programs are kept, and that the second start of a command compiles nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from resnet_jax import compiled_programs


def test_the_folder_is_the_users_choice_then_the_caches() -> None:
    home = Path.home() / ".cache"
    assert compiled_programs.directory({}) == home / "resnet_jax" / "compiled"
    assert compiled_programs.directory({"XDG_CACHE_HOME": "/x"}) == Path("/x/resnet_jax/compiled")
    assert compiled_programs.directory({"XDG_CACHE_HOME": "relative"}) == home / "resnet_jax" / "compiled"
    assert compiled_programs.directory({"XDG_CACHE_HOME": "/x", "JAX_COMPILATION_CACHE_DIR": "/y"}) == Path("/y")
    assert compiled_programs.directory({"JAX_COMPILATION_CACHE_DIR": ""}) is None
    assert compiled_programs.directory({"JAX_ENABLE_COMPILATION_CACHE": "false", "JAX_COMPILATION_CACHE_DIR": "/y"}) is None


def test_what_the_user_has_set_stays(tmp_path: Path) -> None:
    given = {"JAX_COMPILATION_CACHE_DIR": "/y"}
    assert compiled_programs.keep(given) == Path("/y")
    assert given == {"JAX_COMPILATION_CACHE_DIR": "/y"}
    variables = {"XDG_CACHE_HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "7"}
    folder = compiled_programs.keep(variables)
    assert folder is not None
    assert folder.is_dir()
    assert variables["JAX_COMPILATION_CACHE_DIR"] == str(folder)
    assert variables["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] == "7"


def test_a_folder_that_cannot_be_made_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    variables = {"XDG_CACHE_HOME": str(tmp_path / "file")}
    assert compiled_programs.keep(variables) is None
    assert "JAX_COMPILATION_CACHE_DIR" not in variables


START = """
import json, sys
from resnet_jax import cli, compiled_programs
compiled_programs.keep()
import jax
heard = []
jax.monitoring.register_event_listener(lambda event, **_: heard.append(event))
cli.main(["train", sys.argv[1], "--workdir", sys.argv[2], "--data-dir", sys.argv[3], "--json"])
print(json.dumps({name: sum(event.endswith(name) for event in heard) for name in ("cache_hits", "cache_misses")}))
"""


@pytest.mark.slow
def test_the_second_start_of_a_run_compiles_nothing(tmp_path: Path, digits_dir: str) -> None:
    """Two processes, the same experiment, other work folders: every program that is kept is found."""
    experiment = f"{Path(__file__).parent / 'tiny_experiment.py'}:tiny"
    variables = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    # Everything is kept, so that everything has to be found.
    variables |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    found = []
    for name in ("first", "second"):
        words = [sys.executable, "-c", START, experiment, str(tmp_path / name), digits_dir]
        done = subprocess.run(words, env=variables, capture_output=True, text=True, check=False)
        assert not done.returncode, done.stderr[-2000:]
        found.append(json.loads(done.stdout.splitlines()[-1]))
    assert found[0]["cache_misses"] > 0
    assert found[1]["cache_misses"] == 0
    assert found[1]["cache_hits"] > 0
