"""Experiments: valid values, what does not fit, other lengths and data sets, and JSON, fingerprints and differences."""

import copy
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from resnet_jax import cli
from resnet_jax.data.augment_host import RandomResizedCrop
from resnet_jax.data.datasets import DatasetInfo
from resnet_jax.errors import UserError, check
from resnet_jax.models import Architecture, Execution, StochasticDepth, cifar_architecture, components
from resnet_jax.models.blocks import Bottleneck
from resnet_jax.models.components import component
from resnet_jax.models.norms import BatchNorm, FrozenBatchNorm, GroupNorm, NoNorm
from resnet_jax.models.shortcuts import NoShortcut, Scaled, ShortcutOnlyGating
from resnet_jax.training import config
from resnet_jax.training.config import Checkpointing, Data, Distillation, Evaluation, Experiment, Loading, Loss, Optimizer, Schedule, Start

ROOT = Path(__file__).parents[2]
BASE = Experiment(name="resnet20", model=cifar_architecture(20), data=Data(name="cifar10"))
INFO = DatasetInfo(
    name="cifar10",
    version="3.0.2",
    directory=Path("/nowhere"),
    examples={"train": 50_000, "test": 10_000},
    image_shape=(32, 32, 3),
    num_classes=10,
)
PHOTOGRAPHS = dataclasses.replace(INFO, name="photographs", image_shape=(None, None, 3))
GRAY = dataclasses.replace(INFO, image_shape=(32, 32, 1))
DIGITS = dataclasses.replace(INFO, name="digits", examples={"train": 1437, "test": 360}, image_shape=(8, 8, 1))


def changed(fields: dict[str, Any], base: Experiment = BASE) -> Experiment:
    """``base`` with fields ``part.field`` or ``field`` replaced."""
    nested: dict[str, dict[str, Any]] = {}
    for path, value in fields.items():
        part, _, field = path.rpartition(".")
        nested.setdefault(part, {})[field] = value
    own = nested.pop("", {})
    return dataclasses.replace(base, **own, **{part: dataclasses.replace(getattr(base, part), **values) for part, values in nested.items()})


STREAMED = changed(
    {"data.crop": RandomResizedCrop, "data.pad": 0, "data.normalization": "channel", "evaluation.protocol": "40/32"},
    dataclasses.replace(BASE, data=Data(name="photographs")),
)


def test_values_out_of_range_are_rejected_at_construction() -> None:
    """Numbers are finite and at least 0, integers fit in 31 bits; the exceptions are annotated."""
    for value in (math.nan, math.inf, 0.0, -1.0):
        with pytest.raises(UserError, match=rf"^schedule\.learning_rate must be a positive finite number, got {value}\.$"):
            changed({"schedule.learning_rate": value})
    positive = ("steps", "batch_size", "evaluation.every", "checkpointing.every", "checkpointing.keep", "data.repeats")
    counts = ("checkpointing.best", "data.pad", "loading.threads", "execution.steps_per_dispatch", "schedule.warmup_steps")
    for fields, least in ((positive, 1), (counts, 0)):
        for field in fields:
            changed({field: least})
            for value, allowed in ((least - 1, f"at least {least}"), (2**31, rf"in \[{least}, 2147483648\)")):
                with pytest.raises(UserError, match=rf"^{field} must be {allowed}, got {value}\.$"):
                    changed({field: value})
    for field, values in {
        "optimizer.momentum": (-0.1, 1.0, math.nan),
        "optimizer.ema": (1.0,),
        "optimizer.clip": (math.inf, math.nan, -1.0),
        "optimizer.weight_decay": (-1.0, math.inf),
        "optimizer.rates": ((("stages", math.nan),), (("stages", -1.0),)),
        "loss.smoothing": (1.0,),
        "schedule.decay_factor": (-1.0, math.inf),
        "schedule.decay_steps": ((-1,), (5, 2**40)),
        "schedule.warmup_until_error": (1.1, -0.1),
        "evaluation.batch_size": (0, 10**9),
    }.items():
        for value in values:
            with pytest.raises(UserError, match=rf"^{field} must be (in|a|at least) .*, got "):
                changed({field: value})
    changed({"schedule.warmup_until_error": 0.0, "optimizer.momentum": 0.0, "evaluation.batch_size": 65_535})


def test_values_of_another_type_are_rejected() -> None:
    """In the JSON of a run, or a recipe; the tests' run-time checks of annotations reject some of them before."""
    for field, value, allowed in (
        ("model.dtype", "float16", "one of 'float32', 'bfloat16'"),
        ("execution.remat", 2, "of type bool"),
        ("schedule.learning_rate", "0.1", "of type float"),
        ("steps", 1.5, "of type int"),
        ("schedule.decay_steps", (1.5,), r"of type tuple\[int, \.\.\.\]"),
    ):
        broken = copy.deepcopy(BASE)
        owner = broken if "." not in field else getattr(broken, field.partition(".")[0])
        object.__setattr__(owner, field.rpartition(".")[2], value)
        with pytest.raises(UserError, match=f"^{field} must be {allowed}, got "):
            check("", Experiment, broken)


def test_contradictions_are_rejected_at_construction() -> None:
    for fields, message in (
        ({"loss.threshold": 0.2}, r"^loss\.threshold must be none without loss\.kind 'binary'"),
        ({"loss.kind": "binary", "loss.threshold": 1.0}, r"^loss\.threshold must be in \[0, 1\)"),
        ({"optimizer.rates": (("stem", 0.1), ("stem", 0.2))}, r"^optimizer\.rates must not repeat a prefix"),
        ({"schedule.linear_warmup": True, "schedule.warmup_until_error": 0.8}, r"^schedule\.warmup_until_error must be 1"),
        ({"schedule.cosine_steps": 100}, "with empty decay_steps"),
        ({"schedule.decay_steps": (), "schedule.cosine_steps": 5, "schedule.warmup_steps": 5}, r"\.cosine_steps .*above warmup_steps"),
        ({"schedule": Schedule(decay_steps=(), cosine_steps=9, final_learning_rate=0.2)}, r"^schedule\.final_learning_rate"),
    ):
        with pytest.raises(UserError, match=message):
            changed(fields)
    changed({"loss.kind": "binary", "loss.threshold": 0.0, "optimizer.rule": "lars", "optimizer.nesterov": True})
    changed({"schedule": Schedule(decay_steps=(), cosine_steps=6, warmup_steps=5, final_learning_rate=0.1)})


GROUPS = component(GroupNorm, num_groups=8)
IN_GROUPS = component(BatchNorm, group_size=32)


def test_fields_that_do_not_fit_data_or_devices_are_rejected() -> None:
    """The data order of a device-resident set counts images in 31 bits."""
    for base, info, fields, message in (
        (BASE, INFO, {"model": cifar_architecture(20, num_classes=100)}, "^model.num_classes must be 10, got 100"),
        (
            BASE,
            INFO,
            {"model.input_shape": (64, 64, 3), "model.num_classes": 7, "data.test_split": "validation"},
            r"^model.num_classes .*; cifar10 has no split 'validation', but train, test; .*are \(32, 32, 3\), of the model \(64, 64, 3\)"
            r"\. Use --model\.num-classes 10 --data\.test-split test --model\.input-shape 32 32 3$",
        ),
        (BASE, dataclasses.replace(INFO, examples={"test": 5}), {}, "no split 'train'"),
        (BASE, INFO, {"data.validation_examples": 50_000}, "^data.validation_examples must be below 50000"),
        (BASE, INFO, {"data.normalization": "weights"}, "^data.normalization 'weights' needs initial weights"),
        (BASE, GRAY, {"data.normalization": "imagenet"}, "^data.normalization 'imagenet' needs images of 3 channels, got 1"),
        (BASE, INFO, {"data.repeats": 2}, "data.repeats .* need a data.crop"),
        (BASE, INFO, {"evaluation.protocol": "40/32"}, "^evaluation.protocol.* need a data.crop"),
        (BASE, PHOTOGRAPHS, {}, r"are of several sizes, of the model \(32, 32, 3\): set a data.crop such as"),
        (BASE, INFO, {"steps": 2**24}, "at most 2147483647, got 2147483648"),
        (STREAMED, PHOTOGRAPHS, {"evaluation.protocol": ""}, "^evaluation.protocol must be one crop, .*got ''"),
        (STREAMED, PHOTOGRAPHS, {"evaluation.protocol": "multi-scale"}, "^evaluation.protocol must be one crop, .*got 'multi-scale'"),
        (STREAMED, PHOTOGRAPHS, {"data.normalization": "pixel_mean", "evaluation.protocol": "40/24"}, r"must crop to \(32, 32\)"),
        (STREAMED, PHOTOGRAPHS, {"data.pad": 4}, "^data.pad must be 0 .*got 4"),
        (STREAMED, PHOTOGRAPHS, {"model.input_shape": (32, 32, 1)}, "^model.input_shape must have 3 channels, got 1"),
        (BASE, INFO, {"optimizer.ema": 0.99}, r"^optimizer\.ema with BatchNorm needs evaluation\.statistics_batches"),
        (BASE, INFO, {"optimizer.rule": "schedule_free_sgd"}, r"^schedule_free_sgd with BatchNorm needs evaluation\.statistics_batches"),
        (BASE, INFO, {"model.norm": GROUPS, "evaluation.statistics_batches": 10}, "must be 0 for GroupNorm"),
        (BASE, INFO, {"model.norm": FrozenBatchNorm, "evaluation.statistics_batches": 10}, "must be 0 for FrozenBatchNorm"),
        (
            BASE,
            INFO,
            {"model.norm": component(BatchNorm, group_size=48)},
            r"^batch_size must be a multiple of 48, .*got 128. Use --model.norm BatchNorm$",
        ),
        (BASE, INFO, {"optimizer.accumulation": 3}, "a multiple of 3, optimizer.accumulation times"),
        (BASE, INFO, {"model.norm": IN_GROUPS, "optimizer.accumulation": 8}, "a multiple of 256"),
    ):
        with pytest.raises(UserError, match=message):
            changed(fields, base).check(info)
    for value, devices in ((100, 8), (128, 3)):
        with pytest.raises(UserError, match=f"^batch_size must be a multiple of the {devices} devices, got {value}"):
            changed({"batch_size": value}).check(INFO, devices)
    STREAMED.check(PHOTOGRAPHS)
    for fields in (
        {"data.validation_examples": 49_999, "data.pad": 0, "data.test_split": "train", "steps": 2**24 - 1},
        *({"model.norm": norm, "optimizer.ema": 0.99} for norm in (GROUPS, NoNorm, FrozenBatchNorm)),
        {"optimizer.ema": 0.99, "evaluation.statistics_batches": 1},
        {"optimizer.rule": "schedule_free_sgd", "evaluation.statistics_batches": 1},
        {"optimizer.accumulation": 128},
        {"model.norm": IN_GROUPS, "optimizer.accumulation": 4},
    ):
        changed(fields).check(INFO)


LONG = changed({"schedule": Schedule(warmup_steps=400, warmup_until_error=0.8)})


def test_shortened_scales_decays_and_keeps_the_rest() -> None:
    """Decays at a half and three quarters; at most a quarter of warm-up; at least eight evaluations. A cosine ends at the same part."""
    for steps, decays, warmup, every in (
        (128_000, (64_000, 96_000), 400, 1000),
        (640, (320, 480), 160, 80),
        (10, (5, 8), 2, 1),
        (1, (1, 1), 0, 1),
    ):
        schedule = dataclasses.replace(LONG.schedule, decay_steps=decays, warmup_steps=warmup)
        assert LONG.shortened(steps) == dataclasses.replace(LONG, steps=steps, schedule=schedule, evaluation=Evaluation(every=every))
    assert LONG.shortened(64_000) is LONG
    with pytest.raises(UserError, match=r"^steps must be at least 1, got 0"):
        LONG.shortened(0)
    cosine = Schedule(decay_steps=(), cosine_steps=32_000, cosine_from="warmup", warmup_steps=400, linear_warmup=True)
    for steps, end, warmup in ((6400, 3200, 400), (128_000, 64_000, 400), (640, 320, 160)):
        shortened = changed({"schedule": cosine}).shortened(steps).schedule
        assert shortened == dataclasses.replace(cosine, cosine_steps=end, warmup_steps=warmup)


def test_values_on_the_command_line_win_over_steps(digits_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others are rescaled: 12 steps, decays at 6 and 9, 2 steps of warm-up and an evaluation every 6 steps. Also values of the recipe."""

    def stop(experiment: Experiment, *_: Any, **__: Any) -> None:
        schedule, evaluation = experiment.schedule, experiment.evaluation
        runs.append((schedule.decay_steps, schedule.cosine_steps, schedule.warmup_steps, evaluation.every, experiment.checkpointing.every))
        raise UserError("stopped")

    monkeypatch.setattr("resnet_jax.training.train.train", stop)
    command = ["train", f"{ROOT}/tests/tiny_experiment.py:tiny", "--data-dir", digits_dir, "--workdir", str(tmp_path / "run")]
    cosine = "--schedule.decay-steps --schedule.cosine-steps=50"
    for words, expected in {
        "": ((6, 9), 0, 2, 6, 4),
        "--steps 80": ((40, 60), 0, 2, 6, 4),
        "--steps 4": ((2, 3), 0, 1, 1, 4),
        "--steps 200 --schedule.decay-steps 80 120": ((80, 120), 0, 2, 6, 4),
        "--steps 200 --schedule.decay_steps 6 9": ((6, 9), 0, 2, 6, 4),
        "--schedule.decay-steps 3 5 --steps 4 --evaluation.every 4": ((3, 5), 0, 1, 4, 4),
        "--steps 80 --evaluation.every 80 --schedule.warmup-steps 60": ((40, 60), 0, 60, 80, 4),
        "--steps=4 --evaluation.every=6 --checkpointing.every=2": ((2, 3), 0, 1, 6, 2),
        "--steps 4 --schedule.warmup-steps 2 --schedule.learning-rate 0.2": ((2, 3), 0, 2, 1, 4),
        f"--steps 80 {cosine}": ((), 50, 2, 6, 4),
        f"--steps 4 {cosine} --schedule.warmup-steps=40": ((), 50, 40, 1, 4),
        "--schedule.warmup-steps 60": ((6, 9), 0, 60, 6, 4),
    }.items():
        runs: list[tuple[Any, ...]] = []
        with pytest.raises(SystemExit):
            cli.main([*command, *words.split()])
        assert runs == [expected], words


def test_rules_on_the_command_line_and_in_the_identity(digits_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file counts without its folder; a schedule of a length is not rescaled."""
    runs: list[Experiment] = []

    def stop(experiment: Experiment, *_: Any, **__: Any) -> None:
        runs.append(experiment)
        raise UserError("stopped")

    monkeypatch.setattr("resnet_jax.training.train.train", stop)
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "mine.py").write_text("def rule(learning_rate, path=''):\n    pass\n")
        rule = f"{tmp_path / place}/mine.py:rule(path='a/b')"
        words = ["--optimizer", rule, "--schedule=exponential_decay(init_value=0.1,transition_steps=9,decay_rate=0.5)", "--steps", "64"]
        with pytest.raises(SystemExit):
            cli.main(
                [
                    "train",
                    f"{ROOT}/experiments/he2015_cifar10.py:resnet20",
                    "--data.name=digits",
                    *words,
                    f"--workdir={tmp_path}",
                    f"--data-dir={digits_dir}",
                ]
            )
    here, there = runs
    assert here.optimizer.rule == f"{tmp_path}/here/mine.py:rule(path='a/b')"
    assert here.schedule.rule == "exponential_decay(decay_rate=0.5, init_value=0.1, transition_steps=9)"
    assert config.restore(Experiment, through_json(here)) == here != there
    assert config.identity(here, 0) == config.identity(there, 0)
    with pytest.raises(UserError, match=r"^give --schedule with --steps: exponential_decay\(.* is not rescaled"):
        here.shortened(4)


def test_on_takes_images_and_classes_of_the_set() -> None:
    digits = LONG.on(DIGITS)
    assert (digits.model.input_shape, digits.model.num_classes) == ((8, 8, 1), 10)
    assert digits.data == dataclasses.replace(LONG.data, name="digits", pad=0, flip=False)
    assert (digits.evaluation.batch_size, digits.steps, digits.schedule) == (360, LONG.steps, LONG.schedule)
    hundred = dataclasses.replace(INFO, name="cifar100", num_classes=100)
    assert LONG.on(hundred) == changed({"model.num_classes": 100, "data.name": "cifar100"}, LONG)
    assert LONG.on(INFO) is LONG
    resident = STREAMED.on(hundred)
    assert (resident.data.crop, resident.evaluation.protocol) == (None, "")
    resident.check(hundred)
    for change in ({"examples": {"train": 5}}, {"image_shape": (None, None, 3)}):
        with pytest.raises(UserError, match=r"digits must have splits|digits has images of \(None"):
            LONG.on(dataclasses.replace(DIGITS, **change))


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(config.resolve(value)))


def test_resolved_form_names_classes_with_arguments_and_is_restored() -> None:
    bottleneck = component(Bottleneck, groups=2, base_width=32, dropout=0.1)
    gated, dropped = component(ShortcutOnlyGating, bias=-6), StochasticDepth(survival=0.7)
    model = Architecture(stages=(2, 2), features=(8, 8), branch=bottleneck, shortcut=gated, stochastic_depth=dropped)
    rates = Optimizer(rates=(("stages", 0.1), ("stages/2", 0.3)))
    for experiment in (BASE, STREAMED, changed({"model": model, "optimizer": rates, "start": Start(file="a", new_head=True)})):
        resolved = through_json(experiment)
        restored = config.restore(Experiment, resolved)
        assert (restored, hash(restored)) == (experiment, hash(experiment))
    resolved = resolved["model"]
    assert resolved["stages"] == [2, 2]
    assert resolved["branch"] == "resnet_jax.models.blocks:Branch(base_width=32, dropout=0.1, expansion=4, groups=2, kernels=(1, 3, 1))"
    assert resolved["shortcut"] == "resnet_jax.models.shortcuts:ShortcutOnlyGating(bias=-6.0)"


SAME_RUN = {
    "name": "another",
    "checkpointing": Checkpointing(every=7),
    "execution": Execution(blocks="loop", kernels="plain", steps_per_dispatch=10),
    "loading": Loading(threads=3),
}
ANOTHER_RUN = {
    "model": cifar_architecture(20, shortcut=NoShortcut),
    "data": Data(name="cifar10", flip=False),
    "optimizer": Optimizer(nesterov=True),
    "loss": Loss(smoothing=0.1),
    "evaluation": Evaluation(statistics_batches=10),
    "schedule": Schedule(warmup_steps=1),
    "steps": 64_001,
    "batch_size": 127,
    "start": Start(file="weights.safetensors", digest="ab"),
    "distillation": Distillation(teacher="weights.safetensors", digest="ab"),
}


def identity(fields: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    return config.identity(changed(fields), seed)


def test_identity_has_every_field_that_changes_the_result() -> None:
    """A new field of the experiment belongs to one side. Weights count by their digest, arguments of classes without their order."""
    assert {f.name for f in dataclasses.fields(Experiment)} == SAME_RUN.keys() | ANOTHER_RUN.keys()
    base = identity({})
    for field, value in SAME_RUN.items():
        assert identity({field: value}) == base
    for field, value in ANOTHER_RUN.items():
        other = identity({field: value})
        assert config.fingerprint(other) != config.fingerprint(base)
        (difference,) = config.differences(other, base)
        assert difference.startswith(field)
    assert list(config.differences(base, identity({}, 1))) == ["seed: 0 asked for, 1 in the run"]
    assert config.group(base) == config.group(identity({}, 1))
    gated, other = (identity({"model.shortcut": component(ShortcutOnlyGating, bias=bias)}) for bias in (-6.0, -7.0))
    (difference,) = config.differences(gated, other)
    assert difference.startswith("model.shortcut")
    ours, theirs = component(Scaled, shortcut=0.5, branch=1.0), component(Scaled, branch=1.0, shortcut=0.5)
    assert identity({"model.shortcut": ours}) == identity({"model.shortcut": theirs})
    start = identity({"start": Start(file="a", digest="ab")})
    assert start["start"] == {"digest": "ab", "new_head": False}
    assert identity({"start": Start(file="/elsewhere/b", digest="ab")}) == start


def test_class_of_a_file_is_identified_without_its_folder(tmp_path: Path) -> None:
    """A run continues after its project was moved; the resolved form finds the class."""
    identities = []
    for place in ("here/mine.py", "there/mine.py", "there/other.py"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text("class Own:\n    def __init__(self, *args, scale=1.0, path=''):\n        pass\n")
        fields = {"model.shortcut": component(components.load(f"{tmp_path / place}:Own"), scale=0.7, path="a/b")}
        assert config.restore(Experiment, through_json(changed(fields))) == changed(fields)
        assert through_json(changed(fields))["model"]["shortcut"] == f"{tmp_path / place}:Own(path='a/b', scale=0.7)"
        identities.append(identity(fields))
    assert identities[0] == identities[1]
    assert list(config.differences(identities[0], identities[2])) == [
        "model.shortcut: \"mine.py:Own(path='a/b', scale=0.7)\" asked for, \"other.py:Own(path='a/b', scale=0.7)\" in the run"
    ]


def test_differences_list_every_field_with_both_values() -> None:
    other = identity({"steps": 100, "schedule": Schedule(learning_rate=0.2, decay_steps=(1,))})
    assert list(config.differences(other, json.loads(json.dumps(identity({}))))) == [
        "schedule.decay_steps: [1] asked for, [32000, 48000] in the run",
        "schedule.learning_rate: 0.2 asked for, 0.1 in the run",
        "steps: 100 asked for, 64000 in the run",
    ]
    assert list(config.differences({"a": {"b": 1}}, {"a": {}})) == ["a.b: 1 asked for, None in the run"]


def test_json_of_another_version_is_rejected() -> None:
    for part, change, message in (
        ("data", {"dropout": 0.5}, r"dropout.*Another version"),
        ("model", {"dropout": 0.5}, r"dropout.*Another version"),
        ("data", {"name": ...}, r"name.*Another version"),
        ("model", {"shortcut": "resnet_jax.models.shortcuts:ZeroPat"}, r"ZeroPat.*did you mean ZeroPad"),
        ("model", {"shortcut": "resnet_jax.models.shortcuts:ZeroPad(resise='pad')"}, r"no argument 'resise'; did you mean resize"),
    ):
        written = config.resolve(BASE)
        written[part] = {name: value for name, value in (written[part] | change).items() if value is not ...}
        with pytest.raises(UserError, match=message):
            config.restore(Experiment, written)
