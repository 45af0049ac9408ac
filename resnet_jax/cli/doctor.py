"""Versions, devices, processes and data sets of this machine, and problems with their remedies."""

import glob
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from resnet_jax import distributed
from resnet_jax.cli import options as options_lib
from resnet_jax.data import datasets
from resnet_jax.errors import UserError
from resnet_jax.training import run_dir

_DEVICE_FILES = {
    "an NVIDIA GPU": ("/dev/nvidia[0-9]*", "jax[cuda12]"),
    "a TPU": ("/dev/accel[0-9]*", "jax[tpu]"),
}


def examine(data_dir: str | None = None) -> dict[str, Any]:
    """Returns the facts of this machine, and ``problems``: pairs of a problem and its remedy."""
    versions = run_dir.versions()
    problems = [
        (f"{name} is missing", f"pip install {name}")
        for name, version in versions.items()
        if version.startswith("not")
    ]
    try:
        among = (
            distributed.detected()
            or "one alone: no --coordinator, JAX_COORDINATOR_ADDRESS, Slurm step or TPU slice"
        )
    except UserError as error:
        among = "incomplete"
        problems.append(
            (
                f"the processes of a run would not find each other: {error}",
                "set all variables, or none",
            )
        )
    device = run_dir.devices()
    for name, (files, extra) in _DEVICE_FILES.items():
        if device["backend"] == "cpu" and glob.glob(files):
            problems.append(
                (f"{name} is attached, and jax uses the CPU", f"pip install -U '{extra}'")
            )
    data_sets: dict[str, str] = {}
    for name, folder in datasets.prepared(data_dir).items():
        try:
            info = datasets.describe(name, data_dir)
            data_sets[name] = (
                f"{info.version}, {', '.join(f'{n} {s}' for s, n in info.examples.items())}, in {folder}"
            )
        except UserError as error:
            data_sets[name] = f"cannot be used: {error}"
    if not data_sets:
        problems.append(
            (
                "no data set is prepared",
                "resnet-jax prepare digits (no network needed), resnet-jax prepare cifar10",
            )
        )
    return {
        "versions": versions,
        "commit": run_dir.commit(),
        "devices": device,
        "processes": among,
        "compiled_programs": jax.config.jax_compilation_cache_dir,  # pyright: ignore[reportAttributeAccessIssue]
        "data_dirs": [str(directory) for directory in datasets.data_dirs(data_dir)],
        "data_sets": data_sets,
        "problems": problems,
    }


def text(report: dict[str, Any]) -> str:
    """Formats the result of ``examine``."""
    device = report["devices"]
    lines = [
        "versions:   "
        + ", ".join(f"{name} {version}" for name, version in report["versions"].items()),
        f"commit:     {report['commit'] or 'not run from a checkout'}",
        f"devices:    {device['count']} x {device['kind']} ({device['backend']}), {device['cores']} host cores",
        f"processes:  {report['processes']}",
        f"compiled:   {report['compiled_programs'] or 'not kept'}",
        "data in:    " + ", ".join(report["data_dirs"]),
        *(f"  {name}: {description}" for name, description in report["data_sets"].items()),
    ]
    lines += [f"problem:    {problem}. Do: {remedy}" for problem, remedy in report["problems"]] or [
        "no problem found"
    ]
    return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """List versions, devices, processes and data sets, and problems with their remedies. Exits with 1 if there are problems."""

    data_dir: str | None = None
    json: bool = False


def doctor(arguments: Sequence[str]) -> None:
    """List versions, devices and data sets, and problems with their remedies"""
    options = options_lib.parse("doctor", DoctorOptions, arguments)
    report = examine(options.data_dir)
    print(json.dumps(report) if options.json else text(report))
    if report["problems"]:
        raise SystemExit(1)
