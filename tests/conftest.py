"""Configuration and fixtures of all tests: eight virtual devices, prepared data sets, a silent progress."""

import dataclasses
import gc
import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Set before jax is imported. Eight devices on two busy cores can be minutes apart in a collective; XLA's limit is 40 s.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8 --xla_cpu_collective_call_terminate_timeout_seconds=1200"
)
os.environ["JAX_PLATFORMS"] = "cpu"
# Workers, subprocesses and later runs share compiled programs.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import pytest
from resnet_jax.data import datasets, prepare
from resnet_jax.models import components
from resnet_jax.models.shortcuts import Projection
from resnet_jax.training.config import Checkpointing, Evaluation, Experiment
from resnet_jax.training.loggers import Callback, Run
from resnet_jax.training.train import train

import synthetic_imagenet


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="skipped tests fail")


def pytest_collection_finish() -> None:
    """Exempts imported modules from garbage collection, which makes each later one cheap."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def errors_of_finalizers() -> Iterator[None]:
    """Raised in the file that causes them, unclosed files among them."""
    yield
    gc.collect()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    report = yield
    if report.skipped and item.config.getoption("--no-skips"):
        report.outcome = "failed"
    if report.failed:
        target = "test-slow" if item.get_closest_marker("slow") else "test"
        report.sections.append(("Rerun this test alone", f"make {target} WORKERS=0 ARGS=\"'{item.nodeid}'\""))
    return report


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A data directory with `digits`."""
    directory = str(tmp_path_factory.mktemp("tfds"))
    prepare.prepare("digits", directory)
    return directory


@pytest.fixture(scope="session")
def cifar10() -> datasets.DatasetInfo:
    """The real CIFAR-10; tests that need it are skipped, and say so, where TFDS_DATA_DIR does not hold it."""
    if "cifar10" not in datasets.prepared():
        pytest.skip("CIFAR-10 is not prepared: set TFDS_DATA_DIR, or run `resnet-jax prepare cifar10`")
    return datasets.describe("cifar10")


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[datasets.DatasetInfo]:
    """A set in the format of ImageNet, 440 training and 220 validation images: the photographs in TFDS_DATA_DIR, else synthetic ones."""
    given = os.environ.get("TFDS_DATA_DIR", "")
    with pytest.MonkeyPatch.context() as patched:
        if "imagenet2012" not in datasets.prepared() or datasets.describe("imagenet2012").examples != synthetic_imagenet.EXAMPLES:
            directory = tmp_path_factory.mktemp("photographs")
            synthetic_imagenet.write(directory)
            for name, folder in datasets.prepared_in(Path(given)).items() if given else ():
                if name != "imagenet2012":
                    (directory / name).symlink_to(folder.parent)
            # Commands find the set through the environment.
            patched.setenv("TFDS_DATA_DIR", str(directory))
        yield datasets.describe("imagenet2012")


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
    return components.load(f"{ROOT}/tests/tiny_experiment.py:tiny")()


@pytest.fixture(scope="session")
def short(tiny: Experiment) -> Experiment:
    """Four steps of it, with projections as torch's networks have them."""
    fields = dict(checkpointing=Checkpointing(every=2), evaluation=Evaluation(batch_size=72))
    return dataclasses.replace(tiny, name="short", model=dataclasses.replace(tiny.model, shortcut=Projection), **fields).shortened(4)


@pytest.fixture(scope="session")
def short_run(short: Experiment, digits_dir: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of its run with seed 3."""
    folder = tmp_path_factory.mktemp("short") / "run"
    train(short, 3, folder, data_dir=digits_dir, devices=1)
    return folder


@dataclasses.dataclass
class Told(Callback):
    """Records its calls."""

    messages: list[str] = dataclasses.field(default_factory=list)
    records: list[dict] = dataclasses.field(default_factory=list)
    steps: list[int] = dataclasses.field(default_factory=list)

    def start(self, run: Run) -> None:
        self.messages.append(f"start {run.step}/{run.experiment.steps}")

    def step(self, step: int, metrics: object) -> None:
        self.steps.append(step)

    def record(self, record: dict) -> None:
        self.records.append(record)

    def message(self, text: str) -> None:
        self.messages.append(text)


@pytest.fixture
def told() -> Told:
    return Told()
