"""One training step of an experiment, compiled for devices that need not be there, and what the program says of itself."""

import dataclasses
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from resnet_jax.configured import configured, parts
from resnet_jax.errors import UserError
from resnet_jax.models import convolution, moments, pooling
from resnet_jax.plan import arithmetic, program_text
from resnet_jax.plan.program_text import Traffic
from resnet_jax.training import mesh as mesh_lib
from resnet_jax.training import program
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.state import TrainState
from resnet_jax.training.step import Arrived, Resident


@dataclass(frozen=True)
class Variant:
    """What of an experiment a plan changes."""

    batch_per_device: int
    """Images of a step on a device."""
    fsdp: int = 1
    """Devices that share a copy of the parameters; 1: each has its own."""
    group_size: int | None = None
    """Images that BatchNorm sees; 0: all of the batch; None: as the experiment has it."""

    def of(self, experiment: Experiment, devices: int, platform: str) -> Experiment:
        """The experiment so changed, with what it leaves to the machine decided for another than this one."""
        batch = self.batch_per_device * devices
        model, execution = experiment.model, experiment.execution
        if self.group_size is not None:
            model = dataclasses.replace(model, norm=configured(model.norm, group_size=self.group_size))
        decided = dataclasses.replace(
            execution,
            blocks="scan" if execution.scans(sum(model.stages), platform) else "loop",
            convolution=convolution.form_of(execution.convolution, convolution.WRITTEN_FOR, platform),
            normalization=convolution.form_of(execution.normalization, moments.WRITTEN_FOR, platform),
            pooling=convolution.form_of(execution.pooling, pooling.WRITTEN_FOR, platform),
        )
        # Scores run in another program; their batches only have to be shared alike.
        evaluation = dataclasses.replace(experiment.evaluation, batch_size=batch)
        return dataclasses.replace(experiment, model=model, batch_size=batch, execution=decided, evaluation=evaluation)


@dataclass(frozen=True)
class Memory:
    """Bytes on each device."""

    arguments: int
    outputs: int
    aliased: int
    """Of the outputs, what takes the place of arguments."""
    temporary: int
    code: int

    @property
    def total(self) -> int:
        return self.arguments + self.outputs - self.aliased + self.temporary + self.code


@dataclass(frozen=True)
class Compiled:
    """A compiled step."""

    memory: Memory | None
    """None where it does not fit, and the compiler says so."""
    refusal: str
    """Its words; empty where it fits."""
    needed: int
    """Bytes on each device, ``memory.total``, or those that the refusal names; 0: it names none."""
    traffic: Traffic
    flops: int
    """Of all devices."""
    seconds: float
    """That compiling took here."""
    text: str = ""
    """The program; empty where it does not fit."""


def compile_step(
    experiment: Experiment, variant: Variant, devices: Sequence[Any], platform: str, examples: int = 50_000, steps: int = 1
) -> Compiled:
    """Compiles the training step that ``resnet-jax train`` runs.

    Args:
      experiment: what to train.
      variant: what is changed of it.
      devices: to compile for.
      platform: tpu, gpu or cpu: what they are.
      examples: images of a training set that lives on the device.
      steps: training steps in the program, which is a loop where there are several; ``traffic`` and ``text`` are of all of them.
    """
    changed = variant.of(experiment, len(devices), platform)
    made = program.compiled(changed, fsdp=variant.fsdp, among=devices)
    if made.mesh.size != len(devices):
        raise UserError(f"a batch of {changed.batch_size} images is shared by {made.mesh.size} of {len(devices)} devices")
    traced: Any = made.train.trace(_states(made), _data(changed, made, examples), steps)  # pyright: ignore[reportFunctionMemberAccess]
    flops = arithmetic.flops(traced.jaxpr)
    began = time.perf_counter()
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        refusal = next(line for line in str(error).splitlines() if line)
        return Compiled(None, refusal, _named(str(error)), Traffic(), flops, time.perf_counter() - began)
    seconds = time.perf_counter() - began
    said = compiled.memory_analysis()
    memory = Memory(
        arguments=said.argument_size_in_bytes,
        outputs=said.output_size_in_bytes,
        aliased=said.alias_size_in_bytes,
        temporary=said.temp_size_in_bytes,
        code=said.generated_code_size_in_bytes,
    )
    text = compiled.as_text()
    return Compiled(memory, "", memory.total, program_text.read(text), flops, seconds, text)


def _states(made: program.Program) -> TrainState:
    """Shapes and shardings of the state of one seed, as ``Program.stack`` makes it."""
    shardings = mesh_lib.by_seed(made.mesh, jax.tree.map(lambda leaf: leaf.sharding, made.abstract_state))
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype, sharding=where), made.abstract_state, shardings
    )


def _data(experiment: Experiment, made: program.Program, examples: int) -> Any:
    """Shapes of what ``Program.arrive`` or ``Program.place`` puts on the devices."""
    whole = mesh_lib.replicated(made.mesh)
    streams = experiment.data.crop is not None
    count, where = (experiment.batch_size, mesh_lib.batch(made.mesh)) if streams else (examples, whole)
    images = jax.ShapeDtypeStruct((count, *experiment.model.input_shape), jnp.uint8, sharding=where)
    labels = jax.ShapeDtypeStruct((count,), jnp.int32, sharding=where)
    constants = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), program.abstract_preprocessing(experiment)
    )
    return (Arrived if streams else Resident)(images, labels, constants)  # pyright: ignore[reportArgumentType]


def _named(refusal: str) -> int:
    """Bytes that a refusal names: ``the total memory required for HLO temporaries (20.11G) exceeds available HBM (15.75G)``."""
    found = re.search(r"\(([\d.]+)([KMG])\) exceeds", refusal)
    return int(float(found[1]) * {"K": 2**10, "M": 2**20, "G": 2**30}[found[2]]) if found else 0


def group_of(experiment: Experiment, batch_per_device: int) -> int:
    """Images that BatchNorm sees, not being all: the experiment's groups, where a device has whole ones, or its images."""
    group = parts(experiment.model.norm)[1].get("group_size", 0)
    return group if group and batch_per_device % group == 0 else batch_per_device
