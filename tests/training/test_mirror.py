"""What a run wrote is on the store, whole, when the machine is gone; and nothing on the store is lost by what becomes of a machine."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.data.augmentation import Preprocessing
from resnet_jax.errors import UserError
from resnet_jax.studies import run as run_lib
from resnet_jax.training import mirror
from resnet_jax.training.checkpoints import Checkpoints
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.mirror import Mirror
from resnet_jax.training.state import TrainState, digest
from resnet_jax.training.workdir import MetricsWriter, Workdir

CONSTANTS = Preprocessing(np.zeros(1, np.float32), np.ones(1, np.float32))
Machine = Callable[[str], None]


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    """The address of an S3 server in a process of its own."""
    pytest.importorskip("moto", reason="moto[server] is not installed")
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    code = (
        "import sys; from moto.server import ThreadedMotoServer; s = ThreadedMotoServer('127.0.0.1', 0, verbose=False); s.start(); "
        "print(s.get_host_and_port()[1], flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    port = process.stdout.readline().strip()
    yield f"http://127.0.0.1:{port}"
    process.kill()
    process.communicate()


@pytest.fixture(params=["memory", "s3"])
def url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Of a run that is not there yet."""
    if request.param == "s3":
        address = request.getfixturevalue("s3_server")
        fixed = {"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
        for name, value in fixed.items():
            monkeypatch.setenv(name, value)
        fsspec.filesystem("s3").makedirs(f"bucket-{os.getpid()}", exist_ok=True)
    else:
        monkeypatch.setitem(mirror.EXTRAS, "memory", "memory")
    return f"{request.param}://bucket-{os.getpid()}/{tmp_path.name.replace('_', '-')}/run"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Goes on as another machine: with a disk of its own."""

    def on(name: str) -> None:
        monkeypatch.setenv("RESNET_JAX_STAGING", str(tmp_path / name))

    on("first")
    return on


def state(seed: int) -> TrainState:
    params = {"kernel": jnp.asarray(np.random.default_rng(seed).normal(size=(50, 7)), jnp.float32)}
    return TrainState(step=jnp.int32(seed), params=params, batch_stats={}, opt_state=(), key=jax.random.key(seed), ema={}, statistics={})


def saved(workdir: Workdir, *steps: int, experiment: Experiment) -> None:
    """Saves checkpoints and a record of each."""
    checkpoints = Checkpoints.of(workdir, experiment.checkpointing, say=pytest.fail)
    writer = MetricsWriter(workdir, step=steps[0] - 1, say=pytest.fail)
    for step in steps:
        checkpoints.save(step, state(step), CONSTANTS)
        writer.write({"step": step, "split": "train", "loss": 1.0})
    writer.close()
    checkpoints.close()


def newest(workdir: Workdir, experiment: Experiment, read_only: bool = False) -> tuple[int, str]:
    messages: list[str] = []
    checkpoints = Checkpoints.of(workdir, experiment.checkpointing, say=messages.append, read_only=read_only)
    found = checkpoints.restore_newest(*jax.eval_shape(lambda: (state(0), CONSTANTS)))
    checkpoints.close()
    assert found is not None
    assert messages == []
    return found[0], digest(found[1])


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stored(url: str) -> dict[str, bytes]:
    scheme, _, path = url.partition("://")
    store = fsspec.filesystem(scheme)
    store.invalidate_cache()
    return {name.lstrip("/").removeprefix(f"{path}/"): store.cat_file(name) for name in store.find(path)}


@pytest.mark.quick(1)
def test_run_goes_on_on_another_machine(url: str, machine: Machine, tiny: Experiment) -> None:
    """With its checkpoints, its records, its event files: what is on the store is what was in the folder. Older checkpoints are gone."""
    said: list[str] = []
    with Workdir(url).claimed(tiny, 1, say=said.append):
        saved(Workdir(url), 1, 2, 3, 4, experiment=tiny)
    assert content(Workdir(url).path) == stored(url)
    assert said == [f"{url} cannot be locked: see to it that no other machine runs it"]
    assert {name.split("/")[1] for name in stored(url) if name.startswith("checkpoints/")} == {"2", "3", "4"}

    machine("second")
    assert not Workdir(url).path.exists()
    with Workdir(url).claimed(tiny, 1, say=said.append):
        assert newest(Workdir(url), tiny) == (4, digest(state(4)))
        assert [record["step"] for record in Workdir(url).records()] == [1, 2, 3, 4]
        saved(Workdir(url), 5, experiment=tiny)
    assert content(Workdir(url).path) == stored(url)
    assert {name.split("/")[1] for name in stored(url) if name.startswith("checkpoints/")} == {"3", "4", "5"}
    assert sum("tfevents" in name for name in stored(url)) >= 1

    machine("first")  # whose folder is older now
    with Workdir(url).claimed(tiny, 1, say=said.append):
        assert newest(Workdir(url), tiny) == (5, digest(state(5)))


def test_url_may_have_passed_through_a_path(url: str, machine: Machine, tiny: Experiment) -> None:
    """Command lines make one."""
    with Workdir(Path(url)).claimed(tiny, 1, say=lambda _: None):
        pass
    assert Workdir(url).path == Workdir(Path(url)).path
    assert "experiment.json" in stored(url)
    assert mirror.is_remote(Path("gs://bucket/run"))
    assert not mirror.is_remote(Path("runs/seed-0"))
    assert not mirror.is_remote("/runs/a:b")


def test_step_that_was_sent_in_part_is_not_there(url: str, machine: Machine, tiny: Experiment) -> None:
    """Its seal is sent last: a machine that dies while it sends leaves none."""
    with Workdir(url).claimed(tiny, 1, say=lambda _: None):
        saved(Workdir(url), 1, 2, experiment=tiny)
    scheme, _, path = url.partition("://")
    fsspec.filesystem(scheme).rm_file(f"{path}/seals/2.json")
    machine("second")
    with Workdir(url).claimed(tiny, 1, say=lambda _: None):
        assert newest(Workdir(url), tiny) == (1, digest(state(1)))
    assert not any(name.startswith("checkpoints/2/") for name in stored(url)), "its remains are gone"


def test_what_could_not_be_sent_stays_and_is_sent_by_the_same_command(
    url: str, machine: Machine, tiny: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said once while the run goes on, and is an error at its end."""
    with Workdir(url).claimed(tiny, 1, say=lambda _: None):
        saved(Workdir(url), 1, experiment=tiny)
    before, workdir, said = stored(url), Workdir(url), list[str]()
    assert workdir._mirror is not None
    tried = []

    def down(*_: Any) -> None:
        tried.append(1)
        raise ConnectionError("no route")

    def offline() -> None:
        with workdir.claimed(tiny, 1, say=said.append):
            patched.setattr(workdir._mirror, "send", down)
            saved(workdir, 2, experiment=tiny)
            while len(tried) < 3:
                time.sleep(0.01)

    with monkeypatch.context() as patched:
        sending = Mirror.sending
        patched.setattr(Mirror, "sending", lambda self, say: sending(self, say, every=0.01))
        with pytest.raises(UserError, match=r"cannot be written: ConnectionError: no route\. Everything is in .*same command"):
            offline()
    assert [message for message in said if "no route" in message] == [
        f"{url} cannot be written: ConnectionError: no route; it is tried again, and training goes on"
    ]
    assert stored(url) == before
    with Workdir(url).claimed(tiny, 1, say=lambda _: None):
        assert newest(Workdir(url), tiny) == (2, digest(state(2)))
    assert content(Workdir(url).path) == stored(url)


def test_folder_that_vanishes_takes_nothing_with_it(url: str, machine: Machine, tiny: Experiment) -> None:
    """Whoever cleared the disk did not mean the store."""
    with Workdir(url).claimed(tiny, 1, say=lambda _: None):
        saved(Workdir(url), 1, experiment=tiny)
    before = stored(url)
    with pytest.raises(UserError, match="is gone"), Workdir(url).claimed(tiny, 1, say=lambda _: None):
        shutil.rmtree(Workdir(url).path)
    assert stored(url) == before
    with Workdir(url).claimed(tiny, 1, say=lambda _: None):
        assert newest(Workdir(url), tiny) == (1, digest(state(1)))


def test_reader_gets_a_copy_and_touches_nothing(url: str, machine: Machine, tiny: Experiment) -> None:
    with Workdir(url).claimed(tiny, 1, say=lambda _: None):
        saved(Workdir(url), 1, 2, experiment=tiny)
        mirrored = Workdir(url)._mirror
        assert mirrored is not None
        mirrored.send()
        before = content(Workdir(url).path)
        assert newest(Workdir.to_read(url), tiny, read_only=True) == (2, digest(state(2)))
        machine("second")
        assert newest(Workdir.to_read(url), tiny, read_only=True) == (2, digest(state(2)))
        machine("first")
        assert content(Workdir(url).path) == before


def test_another_run_is_refused_and_left_alone(url: str, machine: Machine, tiny: Experiment) -> None:
    with Workdir(url).claimed(tiny, 1, say=lambda _: None):
        pass
    before = stored(url)
    machine("second")
    with pytest.raises(UserError, match="holds another run"), Workdir(url).claimed(tiny, 2, say=lambda _: None):
        pytest.fail("it is refused")
    scheme, _, path = url.partition("://")
    fsspec.filesystem(scheme).pipe_file(f"{path}-thesis/thesis.tex", b"...")
    with pytest.raises(UserError, match="holds no run"), Workdir(f"{url}-thesis").claimed(tiny, 1, say=lambda _: None):
        pytest.fail("it is refused")
    assert stored(url) == before
    assert stored(f"{url}-thesis") == {"thesis.tex": b"..."}


def test_second_run_on_the_same_machine_is_refused(url: str, machine: Machine, tiny: Experiment) -> None:
    with (
        Workdir(url).claimed(tiny, 1, say=lambda _: None),
        pytest.raises(UserError, match="is in use"),
        Workdir(url).claimed(tiny, 1, say=lambda _: None),
    ):
        pytest.fail("it is refused")


class Crash(Exception):
    """Stands for a machine that is taken away."""


@pytest.mark.slow
def test_training_continued_on_another_machine_ends_in_the_same_bits(
    url: str, machine: Machine, tiny: Experiment, digits_dir: str, tmp_path: Path, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = run_lib.run(tiny, 0, tmp_path / "straight", progress=told, data_dir=digits_dir, devices=1)

    def crash(step: int) -> None:
        if step == 10:
            raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(told, "advance", crash)
        with pytest.raises(Crash):
            run_lib.run(tiny, 0, url, progress=told, data_dir=digits_dir, devices=1)
    machine("second")
    found = run_lib.run(tiny, 0, url, progress=told, data_dir=digits_dir, devices=1)
    assert "continuing after step 8" in told.messages
    assert found["state_digest"] == straight["state_digest"]
    assert "result.json" in stored(url)


@pytest.mark.parametrize(("scheme", "extra"), [("gs", "gs"), ("s3", "s3")])
def test_store_without_its_packages_is_a_user_error_with_the_command(scheme: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything else happens."""

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(UserError, match=rf"{scheme}:// needs more packages: pip install 'resnet-jax-lab\[{extra}\]'"):
        Workdir(f"{scheme}://bucket/run")


def test_unknown_scheme_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"ftp:// is not known; use gs:// or s3://"):
        Workdir("ftp://host/run")


def test_store_that_cannot_be_reached_is_a_user_error(machine: Machine, tiny: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(mirror.EXTRAS, "memory", "memory")
    workdir = Workdir("memory://bucket/unreachable")

    def down(*_: Any) -> None:
        raise ConnectionError("no route")

    assert workdir._mirror is not None
    monkeypatch.setattr(workdir._mirror._store, "find", down)
    with pytest.raises(UserError, match="cannot be read: ConnectionError: no route"), workdir.claimed(tiny, 1, say=lambda _: None):
        pytest.fail("it is refused")
