"""Flags are tried in processes of their own."""

from typing import Any

import pytest

from resnet_jax.bench import flags


def test_an_unknown_flag_is_refused_with_its_reason() -> None:
    assert "xla_no_such_flag" in flags.refused("--xla_no_such_flag=true", 120)


def test_what_helps_is_faster_beyond_the_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without: 10 s. One flag takes 5 s, one 9 and 20 in turn, one is refused, one fails in its second round."""
    seconds: dict[str, Any] = {"": [10] * 4, "--good": [5] * 4, "--loud": [9, 20, 9, 20], "--fails": [9, None]}
    monkeypatch.setattr(flags, "refused", lambda flag, limit: "unknown" if flag == "--bad" else "")

    class Done:
        def __init__(self, value: float | None):
            self.returncode, self.stdout = int(value is None), f'{{"seconds": {value}}}'

    monkeypatch.setattr(flags, "_child", lambda command, flag, limit: Done(seconds[flag].pop(0)))
    rows = {
        row["flag"]: row for row in flags.measure("n", ["--good", "--loud", "--bad", "--fails"], batch_size=1, steps=1, count=4, limit=1)
    }
    assert (rows["--good"]["speedup"], rows["--good"]["helps"]) == (2, True)
    assert (rows["--loud"]["helps"], rows[""]["helps"]) == (False, False)
    assert (rows["--bad"]["accepted"], rows["--bad"]["reason"]) == (False, "unknown")
    assert "failed" in rows["--fails"]["reason"]


def test_of_a_flags_values_the_fastest_is_exported() -> None:
    rows = [
        {"flag": "--a=1", "helps": True, "speedup": 1.2},
        {"flag": "--a=2", "helps": True, "speedup": 1.4},
        {"flag": "--a=3", "helps": False, "speedup": 1.5},
        {"flag": "--b", "helps": True, "speedup": 1.1},
        {"flag": "--c", "accepted": False},
    ]
    assert sorted(flags.best(rows)) == ["--a=2", "--b"]


def test_flags_and_variables_are_exported_each_in_its_place() -> None:
    found = flags.exports(["--xla_a=1", "GLIBC_TUNABLES=glibc.malloc.hugetlb=0", "--xla_b=+C,+D"])
    assert found == "export GLIBC_TUNABLES=glibc.malloc.hugetlb=0 XLA_FLAGS='--xla_a=1 --xla_b=+C,+D'"


def test_a_process_has_the_flag_behind_the_users_own_and_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_of_the_user=1")
    command = ["-c", "import os; print(os.environ['XLA_FLAGS'], os.environ.get('SOME'))"]
    said = [flags._child(command, flag, 120).stdout.split() for flag in ("", "--xla_tried=2", "SOME=a=b")]
    assert said == [["--xla_of_the_user=1", "None"], ["--xla_of_the_user=1", "--xla_tried=2", "None"], ["--xla_of_the_user=1", "a=b"]]


def test_the_backend_is_that_of_a_process_here() -> None:
    assert flags.backend(120) == "cpu"
