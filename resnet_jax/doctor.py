"""What is installed and found, what is wrong, and what to do."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from resnet_jax import attached, compiled_programs, huge_pages, processes
from resnet_jax.data import sources
from resnet_jax.errors import UserError
from resnet_jax.models import Execution, convolution, moments, pooling
from resnet_jax.models.execution import quick_to_run
from resnet_jax.training import environment


def examine(data_dir: str | None = None) -> dict[str, Any]:
    """Returns versions, devices, data sets, choices made for this machine, and ``problems``: pairs of what is wrong and what to do."""
    problems: list[tuple[str, str]] = []
    versions = environment.versions()
    problems += [(f"{name} is missing", f"pip install {name}") for name, version in versions.items() if version.startswith("not")]
    try:
        place = processes.detected()
        among = "one alone: no --coordinator, JAX_COORDINATOR_ADDRESS, Slurm step or TPU slice" if place is None else str(place)
    except UserError as error:
        among = "given in part"
        problems.append((f"the processes of a run would not find each other: {error}", "give all three, or none"))
    device = environment.devices()
    if device["backend"] == "cpu":
        accelerator = attached.accelerator()
        if accelerator:
            problems.append((f"{accelerator} is here, and jax uses the CPU", "pip install -U 'jax[cuda12]' (or 'jax[tpu]')"))
    if not np.isclose(_small_convolution(), 9.0):
        problems.append(("a small convolution on this device is wrong", "reinstall jax and jaxlib, and the device's driver"))
    data_sets: dict[str, str] = {}
    for name, folder in sources.prepared(data_dir).items():
        try:
            info = sources.describe(name, data_dir)
            data_sets[name] = f"{info.version}, {', '.join(f'{n} {s}' for s, n in info.examples.items())}, in {folder}"
        except UserError as error:
            data_sets[name] = f"cannot be used: {error}"
    if not data_sets:
        problems.append(("no data set is prepared", "resnet-jax prepare digits (no network needed), resnet-jax prepare cifar10"))
    execution = Execution()
    return {
        "versions": versions,
        "commit": environment.commit(),
        "devices": device,
        "processes": among,
        "compiled_programs": str(compiled_programs.directory() or "nowhere: the cache is switched off"),
        "data_dirs": [str(directory) for directory in sources.data_dirs(data_dir)],
        "data_sets": data_sets,
        "execution": {
            "convolution gradients": convolution.form_of("auto", convolution.WRITTEN_FOR),
            "BatchNorm's": convolution.form_of("auto", moments.WRITTEN_FOR),
            "max-pooling's": convolution.form_of("auto", pooling.WRITTEN_FOR),
            "units of ResNet-20": "scan" if execution.scans(9) else "loop",
            "units of ResNet-1202": "scan" if execution.scans(600) else "loop",
            "compiler options": " ".join(f"{option}={value}" for option, value in (quick_to_run() or {}).items()) or "none",
            "huge pages": huge_pages.described(),
        },
        "problems": problems,
    }


def text(found: dict[str, Any]) -> str:
    """What ``examine`` found, for reading."""
    device = found["devices"]
    lines = [
        "versions:   " + ", ".join(f"{name} {version}" for name, version in found["versions"].items()),
        f"commit:     {found['commit'] or 'not run from a checkout'}",
        f"devices:    {device['count']} x {device['kind']} ({device['backend']}), {device['cores']} host cores",
        f"processes:  {found['processes']}",
        "execution:  " + ", ".join(f"{what}: {how}" for what, how in found["execution"].items()),
        f"compiled:   kept in {found['compiled_programs']}",
        "data in:    " + ", ".join(found["data_dirs"]),
        *(f"  {name}: {what}" for name, what in found["data_sets"].items()),
    ]
    lines += [f"problem:    {what}. Do: {remedy}" for what, remedy in found["problems"]] or ["no problem found"]
    return "\n".join(lines)


def _small_convolution() -> float:
    ones = jnp.ones((1, 3, 3, 1))
    return float(
        lax.conv_general_dilated(ones, jnp.ones((3, 3, 1, 1)), (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))[0, 0, 0, 0]
    )
