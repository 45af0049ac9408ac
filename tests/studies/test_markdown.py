"""Tables in a Markdown file: filled from data, once, and nothing else touched."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from made_up_runs import experiment, result

from resnet_jax.errors import UserError
from resnet_jax.studies import committed, markdown

DEVICES = {"backend": "cpu", "kind": "made up chip", "count": 4, "cores": 96, "processes": 1}
STEP_ROW = {
    "network": "cifar_resnet",
    "depth": 20,
    "blocks": "scan",
    "convolution": "explicit",
    "remat": False,
    "batch_size": 128,
    "rounds": 5,
    "seconds": 0.6253754,
    "seconds_least": 0.5820226,
    "seconds_most": 1.2345678,
    "images_per_second": 20_467.7,
    "speedup": 1.0813517,
}
SEEDS_ROW = {
    "seeds": 8,
    "how": "vmap",
    "seconds": 0.0504,
    "seconds_least": 0.0496,
    "seconds_most": 0.0614,
    "images_per_second": 20_317.4,
    "throughput": 3.456,
}
COMPILE_ROW = {
    "network": "cifar_resnet",
    "depth": 110,
    "blocks": "scan",
    "remat": True,
    "trace_seconds": 1.26,
    "lower_seconds": 0.18,
    "compile_seconds": 12.34,
    "operations": 12_345,
    "temporary_bytes": 1_234_567_890,
}
PEER_ROW = {
    **{name: STEP_ROW[name] for name in ("seconds", "seconds_least", "seconds_most", "batch_size")},
    "network": "resnet50_v15",
    "work": "training",
    "what": "torchvision, channels_last",
    "version": "torchvision 1.2",
    "images_per_second": 25.58,
    "ours_over_this": 0.814,
}
RUN_ROW = {
    "network": "cifar_resnet",
    "depth": 20,
    "dtype": "float32",
    "steps": 2_000,
    "recipe_steps": 64_000,
    "compile_seconds": 26.23,
    "step_seconds": 0.0024029,
    "step_seconds_least": 0.0023869,
    "step_seconds_most": 0.0024552,
    "images_per_second": 53_267.4,
    "training_seconds": 153.98,
    "seconds": 183.96,
    "extrapolated": True,
}
DISPATCH_ROW = {
    "network": "resnet50_v15",
    "steps": 10,
    "arrays": 163,
    "host_seconds": 0.00234,
    "host_seconds_least": 0.00221,
    "host_seconds_most": 0.0041,
    "host_seconds_a_step": 0.000234,
    "seconds_a_step": 0.1462,
}
PROGRAM_ROW = {
    "network": "cifar_resnet20",
    "batch_size": 128,
    "target": "gpu:h100",
    "normalization": "explicit",
    "steps": 100,
    "kernels": 1304.59,
    "bytes_per_image": 6.84e6,
    "temporary_bytes": 112.3e6,
}


def bench(path: Path, kind: str, *rows: dict[str, Any]) -> Path:
    versions = {"python": "3.11.9", "jax": "0.10.1"}
    found = {"benchmark": kind, "date": "2026-02-03", "command": f"resnet-jax bench {kind}", "commit": "fedcba9876543210", "rows": rows}
    found |= {"versions": versions, "devices": DEVICES}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found))
    return path


def study(path: Path, **fields: Any) -> Path:
    """Original: 7 and 8; half: 25 and 100, the second diverged; ``fields`` are those of the last result."""
    first, second = experiment("original", 20), experiment("half", 20, plain=True)
    results = [result(first, 0, 7.0), result(first, 1, 8.0), result(second, 0, 25.0)]
    results.append(result(second, 1, 100.0, **({"diverged_at_step": 3} | fields)))
    committed.write(path, results, command="resnet-jax study made.py:up --seeds 2", reduced="At reduced scale: digits.")
    return path


def table(path: Path) -> str:
    """What a block of this file is filled with."""
    text, _ = markdown.filled(f"<!-- results {path.name} -->\n<!-- end -->\n", path.parent)
    return "".join(text.splitlines(keepends=True)[1:-1])


def lines(text: str) -> list[list[str]]:
    """Cells of the table's rows, without its heading."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")][2:]


# Blocks.


def test_blocks_are_filled_and_nothing_else_is_touched(tmp_path: Path) -> None:
    bench(tmp_path / "results" / "step.json", "execution", STEP_ROW)
    bench(tmp_path / "results" / "seeds.json", "seeds", SEEDS_ROW)
    readme = tmp_path / "README.md"
    before = (
        "# Title\n\n\\1 \\g<0> $1 tail  \n<!-- results results/step.json -->\nold | table\n\n<!-- end -->\n\nbetween <!-- a comment -->\n"
    )
    before += "<!-- results results/seeds.json -->\n<!-- end -->\n| a table | of mine |\n<!-- end -->\nno newline at the end"
    readme.write_text(before)
    assert markdown.fill(readme) == 2
    after = readme.read_text()
    kept = [
        "# Title\n\n\\1 \\g<0> $1 tail  \n<!-- results results/step.json -->\n",
        "<!-- end -->\n\nbetween <!-- a comment -->\n<!-- results results/seeds.json -->\n",
        "<!-- end -->\n| a table | of mine |\n<!-- end -->\nno newline at the end",
    ]
    assert after.startswith(kept[0])
    assert after.endswith(kept[2])
    assert kept[1] in after
    inside = after
    for part in kept:
        inside = inside.replace(part, "\0")
    assert inside.count("\0") == 3
    assert "old | table" not in after
    assert "cifar_resnet 20" in inside.split("\0")[1]
    assert "vmap" in inside.split("\0")[2]


def test_twice_is_once(tmp_path: Path) -> None:
    study(tmp_path / "study.json")
    bench(tmp_path / "step.json", "execution", STEP_ROW)
    readme = tmp_path / "README.md"
    readme.write_text("<!-- results study.json -->\n<!-- end -->\n<!-- results step.json -->\n<!-- end -->\n")
    assert markdown.fill(readme) == 2
    first = readme.read_bytes()
    assert markdown.fill(readme) == 0
    assert readme.read_bytes() == first
    # One file changes, one block does.
    bench(tmp_path / "step.json", "execution", STEP_ROW | {"speedup": 2.0})
    assert markdown.fill(readme) == 1
    assert "| 2.00 |" in readme.read_text()


def test_a_file_without_blocks_is_left_alone(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("no table here\n")
    assert markdown.fill(readme) == 0
    assert readme.read_text() == "no table here\n"


def test_a_block_without_its_end_does_not_swallow_the_next(tmp_path: Path) -> None:
    """Everything up to the end of the next one, that one's heading included, would be gone."""
    bench(tmp_path / "a.json", "execution", STEP_ROW)
    bench(tmp_path / "b.json", "seeds", SEEDS_ROW)
    readme = tmp_path / "README.md"
    text = "<!-- results a.json -->\n\nprecious words\n\n<!-- results b.json -->\n<!-- end -->\n"
    readme.write_text(text)
    with pytest.raises(UserError, match="a.json"):
        markdown.fill(readme)
    assert readme.read_text() == text


def test_a_block_at_the_end_without_its_end_is_refused(tmp_path: Path) -> None:
    """It would never be filled, and nobody would be told."""
    bench(tmp_path / "a.json", "execution", STEP_ROW)
    readme = tmp_path / "README.md"
    readme.write_text("words\n<!-- results a.json -->\n| old |\n")
    with pytest.raises(UserError, match="a.json"):
        markdown.fill(readme)


def test_a_missing_file_is_answered_with_the_nearest_and_nothing_is_written(tmp_path: Path) -> None:
    bench(tmp_path / "results" / "2026-cpu-steps.json", "execution", STEP_ROW)
    readme = tmp_path / "README.md"
    text = "<!-- results results/2026-cpu-steps.json -->\n<!-- end -->\n<!-- results results/2026-cpu-step.json -->\n<!-- end -->\n"
    readme.write_text(text)
    with pytest.raises(UserError, match=r"there is no file .*2026-cpu-step.json; did you mean .*2026-cpu-steps.json"):
        markdown.fill(readme)
    assert readme.read_text() == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            '{"kind": "lesion"}',
            "r.json holds results of kind 'lesion'; tables can be made of study, seeds, step, layers, run, dispatch, execution",
        ),
        ('{"benchmark": "stepp", "rows": []}', "r.json holds results of kind 'stepp'"),
        ('{"rows": []}', "r.json holds results of kind None"),
        ('{"kind": "stu', "r.json"),
        ("[]", "r.json"),
    ],
)
def test_an_unknown_kind_or_damaged_file_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(UserError, match=reason):
        table(tmp_path / "r.json")


@pytest.mark.parametrize("folder", ["", "docs"])
def test_the_link_to_the_data_is_the_one_that_the_block_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    """Relative to the Markdown file, so that it works where the file is read: whichever folder the command runs in."""
    (tmp_path / folder).mkdir(exist_ok=True)
    bench(tmp_path / folder / "results" / "step.json", "execution", STEP_ROW)
    readme = tmp_path / folder / "README.md"
    readme.write_text("<!-- results results/step.json -->\n<!-- end -->\n")
    monkeypatch.chdir(tmp_path)
    markdown.fill(readme.relative_to(tmp_path))
    assert "[data](results/step.json)" in readme.read_text()
    assert markdown.fill(readme) == 0, "the same by its absolute path"


# Tables, numbers by hand.


def test_the_table_of_a_study(tmp_path: Path) -> None:
    """7 and 8: 7.50, deviation sqrt(0.5) = 0.71. 25 and 100: 62.50, deviation 75 / sqrt(2) = 53.03, a fail. Differences 18 and 92: mean 55,
    deviation 52.33, half-width 12.7062 x 52.33 / sqrt(2) = 470.13. The best are 0.25 less, the training errors a tenth (100 if diverged).
    """
    text = table(study(tmp_path / "study.json"))
    assert text.splitlines()[0] == (
        "| cell | seeds | test error % | median | best over training % | training error % | against the first, paired (95 %) |"
    )
    assert lines(text) == [
        ["original", "2", "7.50 ± 0.71", "7.50", "7.25 ± 0.71", "0.75 ± 0.07", ""],
        [
            "half",
            "2, 1 diverged",
            "62.50 ± 53.03 **fail**",
            "62.50",
            "62.25 ± 53.03",
            "51.25 ± 68.94",
            "+55.00 (-415.13 to +525.13): not distinguishable",
        ],
    ]
    below = text.splitlines()[-1]
    for said in ("`resnet-jax study made.py:up --seeds 2`", "At reduced scale: digits.", "[data](study.json)", "commit 0123456;"):
        assert said in below, said
    assert "1 x NVIDIA H100 80GB HBM3, 16 cores; jax 0.10.1" in below


def test_what_a_benchmark_was_run_with_is_said(tmp_path: Path) -> None:
    below = table(bench(tmp_path / "step.json", "execution", STEP_ROW)).splitlines()[-1]
    for said in ("`resnet-jax bench execution`", "4 x made up chip, 96 cores", "jax 0.10.1", "2026-02-03", "fedcba9", "[data](step.json)"):
        assert said in below, said


@pytest.mark.parametrize("file", sorted((ROOT / "experiments" / "results").glob("*.json")), ids=lambda file: file.name)
def test_what_this_project_has_committed_can_be_shown(file: Path) -> None:
    """Every row of it."""
    found = json.loads(file.read_text())
    if found.get("kind") == "finding":
        kept = found["tables"][0]["rows"]
    else:
        kept = found["rows"] if "rows" in found else {row.get("experiment", found["common"].get("experiment")) for row in found["results"]}
    assert kept
    assert len(lines(table(file))) == len(kept)


def test_a_study_of_one_seed_shows_no_spread(tmp_path: Path) -> None:
    first, second = experiment("original", 20), experiment("half", 20, plain=True)
    committed.write(tmp_path / "s.json", [result(first, 0, 7.0), result(second, 0, 7.5)], command="x")
    found = lines(table(tmp_path / "s.json"))
    assert [row[2] for row in found] == ["7.00", "7.50"]
    assert found[1][6] == "+0.50, no interval (one seed)"
    assert "nan" not in table(tmp_path / "s.json")


def test_a_study_of_two_machines_names_both(tmp_path: Path) -> None:
    """A study that went on elsewhere: what differs is not common to its results."""
    other = {"backend": "gpu", "kind": "NVIDIA H200", "count": 1, "cores": 32, "processes": 1}
    text = table(study(tmp_path / "s.json", device=other))
    assert "NVIDIA H100 80GB HBM3" in text
    assert "NVIDIA H200" in text


def test_a_study_of_two_versions_of_jax_names_both(tmp_path: Path) -> None:
    text = table(study(tmp_path / "s.json", versions={"python": "3.11.9", "jax": "0.11.2", "flax": "0.12.12"}))
    assert "0.10.1" in text
    assert "0.11.2" in text


def test_a_study_of_two_commits_does_not_say_that_there_was_no_checkout(tmp_path: Path) -> None:
    text = table(study(tmp_path / "s.json", commit="fedcba9876543210fedcba9876543210fedcba98"))
    assert "no chec" not in text
    assert "0123456" in text
    assert "fedcba9" in text


def test_results_without_a_commit_say_no_checkout(tmp_path: Path) -> None:
    committed.write(tmp_path / "s.json", [result(experiment("a", 20), seed, 7.0 + seed, commit=None) for seed in (0, 1)], command="x")
    assert "; no checkout;" in table(tmp_path / "s.json")


def test_a_commit_with_changes_of_its_own_says_so(tmp_path: Path) -> None:
    """`environment.commit` ends in -dirty where files differ from the commit: its number alone would promise what cannot be kept."""
    commit = "0123456789abcdef0123456789abcdef01234567-dirty"
    committed.write(tmp_path / "s.json", [result(experiment("a", 20), seed, 7.0 + seed, commit=commit) for seed in (0, 1)], command="x")
    assert "commit 0123456-dirty;" in table(tmp_path / "s.json")


def test_the_table_of_seeds(tmp_path: Path) -> None:
    """50.4 ms of 49.6 to 61.4."""
    text = table(bench(tmp_path / "seeds.json", "seeds", SEEDS_ROW, SEEDS_ROW | {"seeds": 1, "how": "one", "throughput": 1.0}))
    assert lines(text) == [
        ["8", "vmap", "50 (50 to 61)", "20,317", "3.46"],
        ["1", "one", "50 (50 to 61)", "20,317", "1.00"],
    ]
    assert "4 x made up chip, 96 cores; jax 0.10.1; commit fedcba9; 2026-02-03" in text.splitlines()[-1]


def test_the_table_of_steps(tmp_path: Path) -> None:
    rows = (STEP_ROW, STEP_ROW | {"network": "resnet50", "depth": None, "seconds_most": 12.3456})
    text = table(bench(tmp_path / "step.json", "execution", *rows))
    assert lines(text) == [
        ["cifar_resnet 20", "scan", "explicit", "625 (582 to 1,235)", "20,468", "1.08"],
        ["resnet50", "scan", "explicit", "625 (582 to 12,346)", "20,468", "1.08"],
    ]
    assert "4 x made up chip, 96 cores; jax 0.10.1; commit fedcba9; 2026-02-03" in text.splitlines()[-1]


def test_the_table_of_compilation(tmp_path: Path) -> None:
    """1.26 + 0.18 = 1.44 s; 1,234.6 MB; what was stopped says so in place of its numbers."""
    stopped = {"network": "cifar_resnet", "depth": 1202, "blocks": "loop", "remat": False, "stopped_after_seconds": 900.0}
    text = table(bench(tmp_path / "compile.json", "compile", COMPILE_ROW, stopped))
    assert lines(text) == [
        ["cifar_resnet 110", "scan, remat", "1.4", "12.3", "12,345", "1,235"],
        ["cifar_resnet 1202", "loop", "over 900 in all", "", "", ""],
    ]


def test_the_table_of_steps_beside_peers(tmp_path: Path) -> None:
    assert lines(table(bench(tmp_path / "step.json", "step", PEER_ROW))) == [
        ["resnet50_v15", "128", "training", "torchvision, channels_last (torchvision 1.2)", "625 (582 to 1,235)", "25.6", "0.81"]
    ]


def test_the_table_of_whole_runs(tmp_path: Path) -> None:
    assert lines(table(bench(tmp_path / "run.json", "run", RUN_ROW))) == [
        ["cifar_resnet 20", "float32", "2,000 of 64,000", "26.2", "2.40 (2.39 to 2.46)", "53,267", "154", "184, extrapolated"]
    ]


def test_the_table_of_dispatches(tmp_path: Path) -> None:
    assert lines(table(bench(tmp_path / "dispatch.json", "dispatch", DISPATCH_ROW))) == [
        ["resnet50_v15", "163", "10", "2.34 (2.21 to 4.10)", "0.234", "146.2"]
    ]


def test_the_table_of_programs(tmp_path: Path) -> None:
    assert lines(table(bench(tmp_path / "program.json", "program", PROGRAM_ROW))) == [
        ["cifar_resnet20", "128", "gpu:h100", "explicit", "100", "1,305", "6.8", "112"]
    ]


def test_the_table_of_a_finding_is_its_first(tmp_path: Path) -> None:
    tables = [
        {"title": "first", "columns": ["network", "error %"], "rows": [["a|b", 12.34567], ["c", None]]},
        {"title": "second", "columns": ["unit"], "rows": [[0]]},
    ]
    written = bench(tmp_path / "lesions.json", "finding")
    written.write_text(json.dumps(json.loads(written.read_text()) | {"kind": "finding", "tables": tables}))
    assert table(written).startswith("| network | error % |\n|---|---|\n| a\\|b | 12.35 |\n| c |  |\n")


def test_every_row_has_as_many_cells_as_its_heading(tmp_path: Path) -> None:
    """A bar in a cell's name would begin another one."""
    named = experiment("a|b", 20)
    committed.write(tmp_path / "study.json", [result(named, 0, 7.0), result(experiment("c", 32), 0, 7.0)], command="x")
    files = [
        tmp_path / "study.json",
        bench(tmp_path / "step.json", "execution", STEP_ROW),
        bench(tmp_path / "seeds.json", "seeds", SEEDS_ROW),
    ]
    kinds = {"compile": COMPILE_ROW, "step": PEER_ROW, "run": RUN_ROW, "dispatch": DISPATCH_ROW, "program": PROGRAM_ROW}
    files += [bench(tmp_path / f"{kind}.json", kind, row) for kind, row in kinds.items()]
    for file in files:
        bars = {line.replace(r"\|", "").count("|") for line in table(file).splitlines() if line.startswith("|")}
        assert len(bars) == 1, file
