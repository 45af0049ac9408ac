"""What all tests share: eight virtual devices, prepared data sets, a silent progress."""

import os
import tempfile

# Before jax is imported anywhere. Subprocesses inherit it only where a test hands it on. Eight devices on two busy cores can be minutes
# apart where they meet; XLA ends the process after 40 s.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8 --xla_cpu_collective_call_terminate_timeout_seconds=1200"
)
os.environ["JAX_PLATFORMS"] = "cpu"

# Workers and subprocesses compile the same tiny programs over and over: one cache for this run of the tests, and for no other.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="resnet_jax-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import collections
import dataclasses
from pathlib import Path

import pytest

from resnet_jax import references
from resnet_jax.data import prepare, sources
from resnet_jax.models.shortcuts import Projection
from resnet_jax.studies import run
from resnet_jax.training.experiment import Checkpointing, Evaluation, Experiment

ROOT = Path(__file__).parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--one-in", type=int, default=1, help="run one of so many tests of every file: its first, and so on")


# Before -m chooses.
@pytest.hookimpl(specname="pytest_collection_modifyitems", tryfirst=True)
def pytest_mark_what_is_slow_beyond_the_first_parameters(items: list[pytest.Item]) -> None:
    seen: collections.Counter[str] = collections.Counter()
    for item in items:
        quick, test = item.get_closest_marker("quick"), item.nodeid.partition("[")[0]
        if quick is not None and not any(item.get_closest_marker(later) for later in ("slow", "exhaustive")):
            seen[test] += 1
            if seen[test] > quick.args[0]:
                item.add_marker(pytest.mark.slow)


# Last: one in so many of those that the other options leave.
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    every = config.getoption("--one-in")
    seen: collections.Counter[Path] = collections.Counter()
    kept, left_out = [], []
    for item in items:
        (left_out if seen[item.path] % every else kept).append(item)
        seen[item.path] += 1
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A data directory that holds `digits`, prepared by our builder."""
    directory = str(tmp_path_factory.mktemp("tfds"))
    prepare.prepare("digits", directory)
    return directory


@pytest.fixture(scope="session")
def cifar10() -> sources.DatasetInfo:
    """The real CIFAR-10; tests that need it are skipped, and say so, where TFDS_DATA_DIR does not hold it."""
    if "cifar10" not in sources.prepared():
        pytest.skip("CIFAR-10 is not prepared: set TFDS_DATA_DIR, or run `resnet-jax prepare cifar10`")
    return sources.describe("cifar10")


@pytest.fixture(scope="session")
def photographs() -> sources.DatasetInfo:
    """Photographs in the format of ImageNet: 440 for training, 220 for validation; or all of it. Tests are skipped, and say so, without."""
    if "imagenet2012" not in sources.prepared():
        pytest.skip("imagenet2012 is not prepared: set TFDS_DATA_DIR, or run `resnet-jax prepare imagenet2012 --from DIR`")
    info = sources.describe("imagenet2012")
    if info.examples["train"] != 440:
        pytest.skip(f"these tests are about the 440 photographs, and {info.directory} holds {info.examples['train']}")
    return info


@pytest.fixture(scope="session")
def published_resnet20() -> Path:
    """A public checkpoint (error 8.27 % on CIFAR-10); tests that need it are skipped, and say so, where it is not."""
    folder = Path(os.environ.get("RESNET_JAX_WEIGHTS", ROOT.parent / "shared" / "weights"))
    file = folder / "resnet20-12fca82f.th"
    if not file.is_file():
        pytest.skip(f"{file.name} of akamaster/pytorch_resnet_cifar10 is not in {folder}: set RESNET_JAX_WEIGHTS to where it lies")
    return file


@pytest.fixture(scope="session")
def tiny() -> Experiment:
    """An 8-layer network on `digits` for 12 steps: compiles in seconds, runs in one."""
    return references.load(f"{ROOT}/tests/tiny_experiment.py:tiny")()


@pytest.fixture(scope="session")
def short(tiny: Experiment) -> Experiment:
    """Four steps of it, with projections as torch's networks have them."""
    model = dataclasses.replace(tiny.model, shortcut=Projection)
    saved = Checkpointing(every=2)
    return dataclasses.replace(tiny, name="short", model=model, checkpointing=saved, evaluation=Evaluation(batch_size=72)).shortened(4)


@pytest.fixture(scope="session")
def short_run(short: Experiment, digits_dir: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of its run with seed 3."""
    folder = tmp_path_factory.mktemp("short") / "run"
    run.run(short, 3, folder, progress=Told(), data_dir=digits_dir, devices=1)
    return folder


@dataclasses.dataclass
class Told:
    """A ``training.loop.Progress`` that remembers what it was told."""

    messages: list[str] = dataclasses.field(default_factory=list)
    records: list[dict] = dataclasses.field(default_factory=list)

    def start(self, step: int, steps: int) -> None:
        self.messages.append(f"start {step}/{steps}")

    def advance(self, step: int) -> None:
        pass

    def update(self, record: dict) -> None:
        self.records.append(record)

    def say(self, message: str) -> None:
        self.messages.append(message)


@pytest.fixture
def told() -> Told:
    return Told()
