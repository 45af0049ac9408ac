"""Bad input of every command: its exit code, one sentence on stderr, nothing on stdout, nothing written, nothing compiled."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from resnet_jax import cli

from conftest import ROOT
from studies.synthetic_runs import experiment, write_run

TINY = f"{ROOT}/tests/tiny_experiment.py"
PART = "class Part:\n    def __init__(self, *_, rngs):\n        {}\n    def __call__(self, x, branch):\n        {}\n"
USERS = {
    "syntax.py": "def f(:",
    "imports.py": "\nimport nowhere",
    "exits.py": "raise SystemExit(0)",
    "raises.py": "def f():\n    return {}['x']",
    "leaves.py": "def f():\n    raise SystemExit(0)",
    "wants.py": "def f(x): pass",
    "none.py": "def f(): pass",
    "number.py": "f = 3",
    "zero.py": "\0",
    "latin.py": b"# \xe9\ndef f(): pass",
    "split.py": "def f():\n    return 1 / 0",
    "args.py": "class Part:\n    pass",
    "init.py": PART.format("raise SystemExit(0)", "return x"),
    "call.py": PART.format("pass", "return x['a']"),
    "gives.py": PART.format("pass", "return None"),
    "shape.py": PART.format("pass", "return branch[:, :1]"),
    "source.py": "def one(): return {'train': 3}\ndef two(): return {'train': [(1,)], 'test': []}\ndef three(): return []",
}
"""Files of users that fail, each in another way."""
REFERENCES = (
    ("syntax.py:f", "SyntaxError: invalid syntax (syntax.py, line 1)"),
    ("imports.py:f", "imports.py, line 2: ModuleNotFoundError: No module named 'nowhere'"),
    ("exits.py:f", "exits.py, line 1: SystemExit: 0"),
    ("raises.py:f", "raises.py, line 2: KeyError: 'x'"),
    ("leaves.py:f", "leaves.py, line 2: SystemExit: 0"),
    ("wants.py:f", "wants.py:f cannot be called with"),
    ("none.py:f", "none.py:f returned no "),
    ("number.py:f", "number.py:f"),
    ("zero.py:f", "null bytes"),
    ("latin.py:f", "latin.py"),
    ("split.py:f", "split.py, line 2: ZeroDivisionError: division by zero"),
    ("nowhere.py:f", "there is no file nowhere.py"),
    ("folder:f", "folder"),
    ("dangling.py:f", "there is no file dangling.py"),
    ("none.py", "names no function or class: write FILE.py:NAME; it has f"),
    ("none.py:g", "none.py has no 'g'; there is f"),
)
# Options of `train` and their messages.
FIELDS = (
    *(
        (f"--schedule.learning-rate {value}", f"schedule.learning_rate must be a positive finite number, got {value}.")
        for value in ("nan", "inf", "-1.0")
    ),
    *(
        (f"--{field} {value}", f" must be at least 1, got {value}.")
        for field, value in (("steps", 0), ("batch-size", -3), ("evaluation.every", 0), ("checkpointing.keep", 0))
    ),
    *(
        (f"--{field} -1", " must be at least 0, got -1.")
        for field in ("schedule.warmup-steps", "execution.images-per-device", "model.num-classes")
    ),
    *((f"--{field} nan", " got nan.") for field in ("optimizer.momentum", "optimizer.weight-decay")),
    ("--optimizer.momentum 2.0", "optimizer.momentum must be in [0, 1), got 2.0."),
    ("--optimizer.weight-decay -1.0", "optimizer.weight_decay must be a finite number of at least 0, got -1.0."),
    ("--schedule.decay-steps -5", "schedule.decay_steps must be at least 0, got -5."),
    ("--steps 99999999999999999999", "steps must be in [1, 2147483648), got 99999999999999999999."),
    ("--seed 99999999999999999999", "--seed must be in [0, 4294967296), got 99999999999999999999."),
    ("--seed -1", "--seed must be in [0, 4294967296), got -1."),
    ("--devices 0", "--devices must be at least 1, got 0."),
    ("--fsdp 0", "--fsdp must be at least 1, got 0."),
    ("--devices 99", "99"),
    ("--fsdp 3", "3"),
    ("--profile -1", "--profile must be at least 0, got -1."),
    ("--heartbeat-seconds 0", "heartbeat_seconds must be at least 1, got 0."),
    ("--coordinator here", "is no place among several processes"),
    ("--model.stages 300000 1 1", "the sum of stages be at most 10000"),
    ("--model.stages 1 1", "must have equal lengths"),
    ("--model.stages 0 1 1", "model.stages must be at least 1, got 0."),
    ("--model.features 4 -8 8", "model.features must be at least 1, got -8."),
    ("--model.stochastic-depth.survival nan", "stochastic_depth.survival must be in (0, 1], got nan."),
    ("--model.dtype float16", "invalid choice 'float16' for argument '--model.dtype'. Expected one of ('float32', 'bfloat16')."),
    ("--optimizer.rule adamm", "'adamm' is no known function; did you mean"),
    ("--schedule.learning-rate fast", "Error parsing --schedule.learning-rate: could not convert string to float: 'fast'"),
    ("--steps 1.5", "Error parsing --steps: invalid literal for int() with base 10: '1.5'"),
    ("--learning-rate 1", "Unrecognized options: --learning-rate, 1; did you mean --schedule."),
    ("--model.shortcut \"Scaled(shortcut='x')\"", "Scaled(shortcut='x'): give float"),
    ("--model.shortcut 'Scaled(shortcu=0.7)'", "Scaled takes no argument 'shortcu'; did you mean shortcut?"),
    ("--model.shortcut 'Scaled(0.7)'", "cannot be read: write Scaled(argument=value, ...)"),
    ("--model.order FullPreactivatoin", "'FullPreactivatoin' is no known class; did you mean FullPreactivation"),
    ("--model.order ZeroPad", "order=ZeroPad is for the shortcut, not for the order."),
    ("--optimizer.rates stags 0.1", "optimizer.rates: no parameter lies below 'stags'; did you mean stages"),
    ("--model.shortcut Zero", "'Zero' is no known class; did you mean ZeroPad?"),
    ("--model.shortcut Basic", "shortcut=Basic is for the branch, not for the shortcut."),
    ("--model.shortcut args.py:Part", "args.py:Part cannot be in this network"),
    ("--model.shortcut init.py:Part", "init.py, line 3: SystemExit: 0"),
    ("--model.shortcut call.py:Part", "call.py, line 5"),
    ("--model.shortcut gives.py:Part", "Part must return shape (1, 8, 8, 4), got NoneType."),
    ("--model.shortcut shape.py:Part", "Part must return shape (1, 8, 8, 4), got (1, 1, 8, 4)."),
    ("--model.norm 'BatchNorm(momentum=1.5)'", "BatchNorm.momentum must be in [0, 1), got 1.5."),
    ("--data.name nowhere", "data set 'nowhere' is not prepared in "),
    ("--model.num-classes 2 --model.input-shape 8 8 3 --data.name ./constant", "equal in the channels [2]"),
    ("--data.name ./single", "single has a single class, a; two are needed"),
    ("--data.name ./empty", "has no images in folders SPLIT/CLASS"),
    ("--model.num-classes 2 --model.input-shape 8 8 3 --data.name ./broken", "files that cannot be read: 1"),
    ("--data.name ./file", "file"),
    ("--data.name source.py:one", "source.py:one"),
    ("--data.name source.py:two", "source.py:two"),
    ("--data.name source.py:three", "source.py:three"),
    ("--data.test-split validation", "digits has no split 'validation', but"),
    ("--data.validation-examples 5000", "data.validation_examples must be below 1437."),
    ("--init-from /nowhere", "there is neither a run nor a file of weights at /nowhere"),
    ("--init-from file", "file"),
    ("--new-head", "--new-head and --freeze-trunk belong to --init-from FILE"),
    ("--workdir file", "file"),
    ("--workdir file/run", "file/run"),
    (f"--workdir {'x' * 300}", "File name too long"),
    ("--workdir dangling.py/run", "dangling.py"),
    ("--workdir folder", "folder is not empty and holds no run: use another --workdir"),
    ("--workdir /proc/run", "/proc/run"),
    ("--workdir corrupt", "corrupt/experiment.json is corrupt"),
    ("--workdir checkpoints", "checkpoints is not a directory: move it"),
)
COMMANDS = (
    ("", "a command is missing: see resnet-jax --help"),
    ("trian", "no command is called 'trian'; did you mean train?"),
    ("analyze", "a command is missing: see resnet-jax analyze --help"),
    ("weights imprt", "no command is called 'weights imprt'; did you mean weights import"),
    ("train", "the first argument is missing, see resnet-jax train --help"),
    (f"train {TINY}:tiny", "Missing from resnet-jax train: --workdir PATH"),
    (f"train {TINY}:pair --workdir run", "takes a function that returns several"),
    ("train he2015_cifar:resnet20 --workdir run", "no recipe or module is called 'he2015_cifar'; did you mean he2015_cifar10"),
    (f"train {ROOT}/experiments/he2015_cifar.py:resnet20 --workdir run", "he2015_cifar10.py"),
    ("train he2015_cifar10:resnet21 --workdir run", "has no 'resnet21'; did you mean"),
    (f"study {TINY}:pair --workdir run --seeds 0", "--seeds must be at least 1, got 0."),
    (f"study {TINY}:pair --workdir run --steps -1", "--steps must be at least 1, got -1."),
    (f"study {TINY}:pair --workdir run --only halve", "no such variant; did you mean half"),
    (f"study {TINY}:pair --workdir run --workers 2 --devices 1", "--workers and --devices exclude each other"),
    (f"study {TINY}:pair --workdir run --only tiny --only half", "--only is given more than once"),
    (f"study {TINY}:pair --workdir file", "file"),
    (f"study {TINY}:pair --workdir /proc/x --devices 1", "cannot be written"),
    (f"study {TINY}:pair --workdir run --data nowhere", "data set 'nowhere' is not prepared"),
    ("study he2016_shortcuts:table1 --workdir run --depth 21 --data digits", "depth 21 is not 6n+2"),
    ("evaluate nowhere", "there is neither a run nor a file of weights at nowhere"),
    (f"evaluate {'x' * 300}", "File name too long"),
    ("evaluate corrupt", "corrupt/experiment.json is corrupt"),
    ("evaluate begun", "begun"),
    ("evaluate file", "file"),
    ("evaluate RUN --batch-size 0", "--batch-size must be at least 1, got 0."),
    ("evaluate RUN --protocol 12-crop", "12-crop"),
    ("evaluate RUN --split nowhere", "no split 'nowhere'"),
    ("report", "report needs run directories, files of results, or --paper"),
    ("report nowhere", "there is no run in nowhere"),
    ("report file", "file is corrupt"),
    ("report dangling.py", "dangling.py"),
    ("report corrupt", "corrupt/experiment.json is corrupt"),
    ("report half", "half/result.json is corrupt"),
    ("report lines", "lines/metrics.jsonl is corrupt"),
    ("report lacking", "lacks"),
    ("report begun --save x.json", "no run is finished, nothing to save"),
    ("report begun --output page.json", "--output is page.json; give a name that ends in .html"),
    ("report begun --output /proc/x.html", "/proc/x.html cannot be written"),
    ("report --paper he2051", "no paper 'he2051'; did you mean"),
    ("report --paper he2015 --output /proc/x.html", "/proc/x.html cannot be written"),
    ("list resnet5l", "no recipe is called 'resnet5l'"),
    ("summary cifar_resnt --depth 20", "did you mean"),
    ("summary cifar_resnet --depth 21", "depth 21 is not 6n+2"),
    ("summary wrn28_10 --depth 28", "leave out --depth 28"),
    ("summary resnet18 --stages 400000 1 1 1", "the sum of stages be at most 10000"),
    ("summary resnet18 --shortcut 'A('", "cannot be read"),
    ("summary resnet18 --shortcut init.py:Part", "init.py, line 3: SystemExit: 0"),
    ("doctor --nothing", "Unrecognized options: --nothing"),
    ("prepare nothing", "TFDS has no data set 'nothing'"),
    ("prepare digits:9.9.9", "digits:9.9.9 cannot be prepared"),
    ("data check nowhere", "data set 'nowhere' is not prepared"),
    ("data check ./empty", "has no images in folders"),
    (f"data preview {TINY}:tiny --images 0", "--images must be at least 1, got 0."),
    (f"data preview {TINY}:tiny --step -1", "--step must be at least 0, got -1."),
    (f"data preview {TINY}:tiny --to preview.txt", "--to is preview.txt; give a name that ends in .png"),
    (f"data preview {TINY}:tiny --to file/preview.png", "file"),
    ("weights import nowhere.pth --to x", "nowhere.pth does not exist"),
    ("weights import file --to x", "file"),
    ("weights import RUN --to x.pth", "ends in .pth, but safetensors is written"),
    ("weights export nowhere --as timm --to x", "there is neither a run nor a file of weights at nowhere"),
    ("weights export RUN --as nobody --to x", "invalid choice 'nobody'"),
    ("weights push folder a/b", "has no model.safetensors: weights export first"),
    ("weights show", "Missing from resnet-jax weights show"),
    ("weights show file", "file"),
    ("analyze responses", "analyze responses needs at least one run directory or file of weights."),
    ("analyze responses nowhere", "there is neither a run nor a file of weights at nowhere"),
    ("analyze responses RUN --images 0", "images must be at least 1, got 0."),
    ("analyze landscape RUN --points 4", "points must be odd, got 4."),
    ("analyze landscape RUN --reach nan", "reach must be a finite number of at least 1e-06, got nan."),
    ("analyze depth nowhere", "there is no run in nowhere"),
    ("analyze depth begun", "no run is finished"),
    ("analyze depth begun --threshold 100.0", "threshold must be in [0, 100), got 100.0."),
    ("export RUN --to x.bin", "--to is x.bin; give a name that ends in .stablehlo or .onnx"),
    ("export nowhere.npz --to x.stablehlo", "nowhere.npz"),
    (f"plan {TINY}:tiny --target", "--target needs at least one value."),
    (f"plan {TINY}:tiny --target tpu:v5e:0x2", "--target is 'tpu:v5e:0x2', not tpu:v5e:4x4 for a slice"),
    (f"plan {TINY}:tiny --target gpu:b999", "b999"),
    (f"plan {TINY}:tiny --target gpu:h100 --fsdp 0", "--fsdp must be at least 1, got 0."),
)  # fmt: skip


def cases() -> list[tuple[str, str]]:
    """Returns command lines with part of their message."""
    lines = [(f"train {TINY}:tiny --workdir run {option}", message) for option, message in FIELDS]
    lines += [(f"train {reference} --workdir run", message) for reference, message in REFERENCES]
    lines += [
        (f"{command} {reference}{more}", message)
        for reference, message in REFERENCES[4:7]
        for command, more in (("summary", ""), ("study", " --workdir run"), ("plan", " --target gpu:h100"))
    ]
    return [*lines, *COMMANDS]


@pytest.fixture
def folder(digits_dir: str, short_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of the commands: files of users, damaged runs, data sets."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", digits_dir)
    for name, text in USERS.items():
        Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    Path("file").write_text("mine")
    Path("folder").mkdir()
    Path("folder/thesis.tex").write_text("...")
    Path("dangling.py").symlink_to("nothing")
    for name in ("begun", "checkpoints"):
        write_run(Path(name), experiment("one", 20), 0, None)
    for name in ("corrupt", "half", "lines", "lacking"):
        write_run(Path(name), experiment("one", 20), 0, 9.0)
    for file, text in (
        ("corrupt/experiment.json", '{"fingerprint": "12'),
        ("half/result.json", '{"value": '),
        ("lines/metrics.jsonl", "{}\n"),
        ("lacking/result.json", '{"value": 9.0}'),
        ("checkpoints/checkpoints", ""),
    ):
        Path(file).write_text(text)
    shutil.copytree(short_run, "RUN")
    rng = np.random.default_rng(0)
    for name, classes, channels in (("constant", "ab", 2), ("single", "a", 3), ("broken", "ab", 3)):
        for split in ("train", "test"):
            for one in classes:
                Path(name, split, one).mkdir(parents=True)
                for index in range(3):
                    pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
                    pixels[..., channels:] = 7
                    Image.fromarray(pixels).save(Path(name, split, one, f"{split}{index}.png"))
    Path("broken/train/a/train0.png").write_bytes(b"\x89PNG\r\n")
    Path("empty").mkdir()
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def problem(line: str, message: str, code: int | str | None, out: str, err: str) -> str:
    """Describes what is wrong with the end of a command; empty if nothing is."""
    lines = err.splitlines()
    listed = len(lines) == 2 and lines[0].endswith(":") and lines[1].startswith("  ")
    good = code == 2 and message in err and not out and err.startswith("resnet-jax: ") and (len(lines) == 1 or listed)
    return "" if good else f"{line}\n    expected {message!r}, got code {code}\n    {err.strip()}\n    {out.strip()}"


def test_bad_input_ends_with_one_sentence_and_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, problems, lines = contents(folder), [], cases()
    assert len(lines) >= 120
    for line, message in lines:
        code: int | str | None = 0
        try:
            cli.main(shlex.split(line))
        except SystemExit as error:
            code = error.code
        except Exception as error:
            code = repr(error)
        wrong = problem(line, message, code, *capsys.readouterr())
        if written := contents(folder).items() ^ before.items():
            wrong, before = f"{wrong}\n{line}\n    wrote {min(written)[0]}", contents(folder)
        problems += [wrong] if wrong else []
    assert not problems, "\n".join(problems)


@pytest.mark.slow
def test_bad_input_of_processes(folder: Path) -> None:
    """Ten of them, with the output of libraries and of the interpreter's end."""
    before, every = contents(folder), cases()
    begun = [
        (
            line,
            message,
            subprocess.run([sys.executable, "-m", "resnet_jax.cli", *shlex.split(line)], capture_output=True, text=True, env=os.environ),
        )
        for line, message in every[3 :: len(every) // 10]
    ]
    wrong = [problem(line, message, done.returncode, done.stdout, done.stderr) for line, message, done in begun]
    assert not any(wrong), "\n".join(wrong)
    assert contents(folder) == before
