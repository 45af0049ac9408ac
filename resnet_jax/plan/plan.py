"""What a plan consists of: an experiment on some targets, laid out and normalised in more than one way, each a row."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from resnet_jax.configured import constructor_parameters, parts
from resnet_jax.errors import UserError
from resnet_jax.plan import bounds, offline, search, targets
from resnet_jax.plan.compiled import Compiled, Variant, compile_step, group_of
from resnet_jax.plan.targets import Target
from resnet_jax.training.experiment import Experiment

Layout = Literal["data", "fsdp"]
Norm = Literal["groups", "global"]
# Above it parts of a parameter are smaller than what is worth sending.
MOST_FSDP = 16


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What to plan."""

    targets: tuple[str, ...]
    batch_per_device: int | None = None
    """None: the experiment's batch, shared by the devices."""
    layouts: tuple[Layout, ...] = ("data", "fsdp")
    norms: tuple[Norm, ...] = ("groups", "global")
    fsdp: int | None = None
    """None: so many of the devices as divide them, up to ``MOST_FSDP``."""
    search: bool = True
    examples: int = 50_000

    def check(self, experiment: Experiment) -> list[tuple[Target, int]]:
        """The targets, each with the images of a device.

        Raises:
          UserError: for what cannot be planned. Nothing is compiled.
        """
        if not self.targets or not self.layouts or not self.norms:
            raise UserError("--target, --layouts and --norms need at least one value each")
        found = [targets.parse(text) for text in self.targets]
        for target in found:
            offline.require(target)
        return [(target, self._images(experiment, target)) for target in found]

    def _images(self, experiment: Experiment, target: Target) -> int:
        chips, batch = target.chips, experiment.batch_size
        if self.batch_per_device is not None and self.batch_per_device < 1:
            raise UserError(f"--batch-per-device is {self.batch_per_device}; give at least 1")
        if self.batch_per_device is None and batch % chips:
            raise UserError(
                f"batch_size is {batch}, which the {chips} chips of {target.name} cannot share equally; give a multiple of {chips}, or "
                "--batch-per-device"
            )
        images = self.batch_per_device or batch // chips
        if self.fsdp is not None and (self.fsdp < 1 or chips % self.fsdp):
            raise UserError(f"--fsdp is {self.fsdp}: parameters are split over a divisor of the {chips} chips of {target.name}")
        divided, group = experiment.optimizer.accumulation, group_of(experiment, images)
        if images * chips % (divided * group):
            raise UserError(
                f"optimizer.accumulation is {divided}: a {divided}th of {images * chips} images does not consist of BatchNorm groups "
                f"of {group}"
            )
        return images

    def variants(self, experiment: Experiment, target: Target, images: int) -> list[tuple[Layout, Variant]]:
        """The first is the one whose batch is enlarged; fsdp stands beside it with the same BatchNorm."""
        group = group_of(experiment, images)
        groups: list[int | None] = [group if norm == "groups" else 0 for norm in self.norms]
        if "group_size" not in constructor_parameters(parts(experiment.model.norm)[0])[0]:
            groups = [None]
        elif target.chips == 1 and group == images:
            # The same program.
            groups = groups[:1]
        share = self.fsdp or max(size for size in range(1, MOST_FSDP + 1) if target.chips % size == 0)
        found: list[tuple[Layout, Variant]] = []
        for layout in self.layouts:
            if layout == "data":
                found.extend((layout, Variant(images, 1, size)) for size in groups)
            elif share > 1:
                found.append((layout, Variant(images, share, groups[0])))
        return found or [("data", Variant(images, 1, groups[0]))]


def make(experiment: Experiment, asked: Asked, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Compiles what is asked for; ``say`` is told of every program. Returns a row, as JSON, for each target and variant."""
    rows = []
    for target, images in asked.check(experiment):
        devices = offline.devices(target)

        def compiled(variant: Variant, target: Target = target, devices: Any = devices) -> Compiled:
            done = compile_step(experiment, variant, devices, target.device.platform, asked.examples)
            say(f"{target.name}, {_words(variant)}: compiled in {done.seconds:.0f} s{f', refused: {done.refusal}' if done.refusal else ''}")
            return done

        for number, (layout, variant) in enumerate(asked.variants(experiment, target, images)):
            done = compiled(variant)
            found = row(experiment, target, layout, variant, done)
            if asked.search and not number:
                found["largest"] = _largest(target, variant, done, compiled)
            rows.append(found)
    return rows


def row(experiment: Experiment, target: Target, layout: Layout, variant: Variant, done: Compiled) -> dict[str, Any]:
    """One row. Bytes, FLOPs and kernels are of a step on one device; images a second of all of them."""
    images, chips, usable = variant.batch_per_device, target.chips, target.device.usable
    found: dict[str, Any] = {
        "target": target.name,
        "chips": chips,
        "layout": layout,
        "fsdp": variant.fsdp,
        "group_size": variant.group_size,
        "dtype": experiment.model.dtype,
        "batch_per_device": images,
        "batch_size": images * chips,
        "fits": done.memory is not None and done.needed <= usable,
        "memory_bytes": done.needed,
        "usable_bytes": usable,
        "device_bytes": target.device.memory,
        "compile_seconds": round(done.seconds, 1),
        "flops_per_image": done.flops / (images * chips),
    }
    if done.memory is None:
        return found | {"refusal": done.refusal}
    traffic = done.traffic
    work = bounds.Work(images, traffic.bytes, done.flops / chips, experiment.model.dtype, traffic.sent)
    bound = bounds.of(work, target)
    memory = done.memory
    return found | {
        "memory": {
            "arguments": memory.arguments,
            "outputs": memory.outputs,
            "aliased": memory.aliased,
            "temporary": memory.temporary,
            "code": memory.code,
        },
        "kernels": traffic.kernels,
        "unknown_loops": traffic.unknown_loops,
        "bytes_per_image": traffic.bytes / images,
        "collectives": traffic.by_kind(),
        "sent_bytes": traffic.sent,
        "bound": {
            "images_per_second": bound.images_per_second,
            "limited_by": bound.limited_by,
            "seconds": {"memory": bound.memory_seconds, "matrix": bound.matrix_seconds, "link": bound.link_seconds},
            "shares": bound.shares,
            "efficiency_hidden": bound.efficiency_hidden,
            "efficiency_exposed": bound.efficiency_exposed,
        },
    }


def _largest(target: Target, variant: Variant, done: Compiled, compiled: Callable[[Variant], Compiled]) -> dict[str, Any]:
    def needs(images: int) -> int | None:
        return _bytes(compiled(Variant(images, variant.fsdp, variant.group_size)))

    unit = min(variant.group_size or 8, variant.batch_per_device)
    found = search.largest(needs, target.device.usable, unit, (variant.batch_per_device, _bytes(done)))
    return {
        "batch_per_device": found.batch,
        "predicted": found.predicted,
        "compiled": {str(batch): bytes_ for batch, bytes_ in sorted(found.compiled.items())},
    }


def _bytes(done: Compiled) -> int | None:
    # A refusal names some of what would be needed, not all.
    return None if done.memory is None else done.needed


def _words(variant: Variant) -> str:
    layout = f"fsdp over {variant.fsdp}" if variant.fsdp > 1 else "data"
    norm = {None: "", 0: ", BatchNorm over the batch"}.get(variant.group_size, f", BatchNorm over groups of {variant.group_size}")
    return f"{layout}{norm}, {variant.batch_per_device} images a chip"
