"""Experiments as JSON and back, fingerprints, and differences between runs."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from resnet_jax.errors import UserError
from resnet_jax.models import NETWORKS, Architecture, Execution, StochasticDepth, cifar_architecture, components
from resnet_jax.models.blocks import Basic, Bottleneck
from resnet_jax.models.components import component
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.orders import FullPreactivation, Original
from resnet_jax.models.shortcuts import NoShortcut, Scaled, ShortcutOnlyGating, ZeroPad
from resnet_jax.models.stems import DeepStem
from resnet_jax.training import config
from resnet_jax.training.config import Checkpointing, Data, Evaluation, Experiment, Loading, Loss, Optimizer, Schedule, Start

from conftest import ROOT
from write_golden import public_experiments

BASE = Experiment(name="resnet20", model=cifar_architecture(20), data=Data(name="cifar10"))


def identity(experiment: Experiment, seed: int = 0) -> dict[str, Any]:
    return config.identity(experiment, seed)


def with_model(**fields: Any) -> Experiment:
    return dataclasses.replace(BASE, model=dataclasses.replace(BASE.model, **fields))


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(config.resolve(value)))


def test_experiments_and_networks_survive_json() -> None:
    """Classes, tuples and missing values of every experiment and every network of the catalog."""
    for path in sorted((ROOT / "experiments").glob("*.py")):
        for found in public_experiments(path).values():
            for experiment in found if isinstance(found, tuple) else (found,):
                back = config.restore(Experiment, through_json(experiment))
                assert (back, hash(back)) == (experiment, hash(experiment))
    for architecture in NETWORKS.values():
        assert config.restore(Architecture, through_json(architecture)) == architecture
    rated = dataclasses.replace(BASE, optimizer=Optimizer(rates=(("stages", 0.1), ("stages/2", 0.3))), start=Start(file="a", new_head=True))
    assert config.restore(Experiment, through_json(rated)) == rated


def test_resolved_form_names_classes_with_arguments_and_lists_tuples() -> None:
    model = Architecture(
        stages=(2, 2),
        features=(8, 8),
        branch=component(Bottleneck, groups=2, base_width=32, dropout=0.1),
        order=FullPreactivation,
        shortcut=component(ShortcutOnlyGating, bias=-6, resize="pool-project"),
        stem=DeepStem,
        norm=component(BatchNorm, momentum=0.99, group_size=64),
        stochastic_depth=StochasticDepth(survival=0.5, rule="uniform", drops="image", scaled="training"),
    )
    found = config.resolve(model)
    assert found["stages"] == [2, 2]
    assert found["branch"] == "resnet_jax.models.blocks:Branch(base_width=32, dropout=0.1, expansion=4, groups=2, kernels=(1, 3, 1))"
    assert found["shortcut"] == "resnet_jax.models.shortcuts:ShortcutOnlyGating(bias=-6.0, resize='pool-project')"
    assert found["order"] == "resnet_jax.models.orders:FullPreactivation"
    assert found["stochastic_depth"]["rule"] == "uniform"
    assert config.restore(Architecture, json.loads(json.dumps(found))) == model


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
}


def test_identity_has_every_field_that_changes_the_result() -> None:
    """A new field of the experiment belongs to one side."""
    assert {f.name for f in dataclasses.fields(Experiment)} == SAME_RUN.keys() | ANOTHER_RUN.keys()
    for field, value in SAME_RUN.items():
        other = dataclasses.replace(BASE, **{field: value})
        assert other != BASE
        assert identity(other) == identity(BASE)
    for field, value in ANOTHER_RUN.items():
        other = identity(dataclasses.replace(BASE, **{field: value}))
        assert config.fingerprint(other) != config.fingerprint(identity(BASE))
        (difference,) = config.differences(other, identity(BASE))
        assert difference.startswith(field)
    assert list(config.differences(identity(BASE, 0), identity(BASE, 1))) == ["seed: 0 asked for, 1 in the run"]
    assert config.group(identity(BASE, 0)) == config.group(identity(BASE, 1))


def test_identity_has_every_argument_of_a_part() -> None:
    for field, (one, other) in {
        "shortcut": (component(ShortcutOnlyGating, bias=-6.0), component(ShortcutOnlyGating, bias=-7.0)),
        "branch": (component(Basic, dropout=0.3), component(Basic, dropout=0.4)),
        "norm": (BatchNorm, component(BatchNorm, group_size=64)),
        "stochastic_depth": (StochasticDepth(), StochasticDepth(survival=0.5)),
        "output_stride": (0, 8),
        "order": (Original, FullPreactivation),
    }.items():
        (difference,) = config.differences(identity(with_model(**{field: one})), identity(with_model(**{field: other})))
        assert difference.startswith(f"model.{field}")
    ours, theirs = component(Scaled, shortcut=0.5, branch=1.0), component(Scaled, branch=1.0, shortcut=0.5)
    assert identity(with_model(shortcut=ours)) == identity(with_model(shortcut=theirs))


def test_starting_weights_are_identified_by_digest() -> None:
    """The name of their file is no part of the identity."""

    def begun(**fields: Any) -> dict[str, Any]:
        return identity(dataclasses.replace(BASE, start=Start(**{"file": "a", "digest": "ab"} | fields)))

    assert begun()["start"] == {"digest": "ab", "new_head": False}
    assert begun(file="/elsewhere/b") == begun()
    assert len({config.fingerprint(each) for each in (begun(), begun(digest="cd"), begun(new_head=True), identity(BASE))}) == 4


def test_class_of_a_file_is_identified_without_its_folder(tmp_path: Path) -> None:
    """A run continues after its project was moved; the resolved form finds the class."""
    identities = []
    for place in ("here/mine.py", "there/mine.py", "there/other.py"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text("class Own:\n    def __init__(self, *args, scale=1.0, path=''):\n        pass\n")
        experiment = with_model(shortcut=component(components.load(f"{tmp_path / place}:Own"), scale=0.7, path="a/b"))
        assert config.restore(Experiment, through_json(experiment)) == experiment
        assert through_json(experiment)["model"]["shortcut"] == f"{tmp_path / place}:Own(path='a/b', scale=0.7)"
        identities.append(identity(experiment))
    assert identities[0] == identities[1]
    assert list(config.differences(identities[0], identities[2])) == [
        "model.shortcut: \"mine.py:Own(path='a/b', scale=0.7)\" asked for, \"other.py:Own(path='a/b', scale=0.7)\" in the run"
    ]


def test_fingerprint_ignores_the_order_of_fields() -> None:
    found = config.fingerprint({"a": 1, "b": {"c": 2, "d": 3}})
    assert found == config.fingerprint({"b": {"d": 3, "c": 2}, "a": 1})
    assert len(bytes.fromhex(found)) == 32


def test_differences_list_every_field_with_both_values() -> None:
    other = dataclasses.replace(
        BASE, model=cifar_architecture(20, shortcut=NoShortcut), steps=100, schedule=Schedule(learning_rate=0.2, decay_steps=(1,))
    )
    assert list(config.differences(identity(other), identity(BASE))) == [
        "model.shortcut: 'resnet_jax.models.shortcuts:NoShortcut' asked for, 'resnet_jax.models.shortcuts:ZeroPad' in the run",
        "schedule.decay_steps: [1] asked for, [32000, 48000] in the run",
        "schedule.learning_rate: 0.2 asked for, 0.1 in the run",
        "steps: 100 asked for, 64000 in the run",
    ]
    assert not list(config.differences(identity(BASE), json.loads(json.dumps(identity(BASE)))))
    assert list(config.differences({"a": {"b": 1}}, {"a": {}})) == ["a.b: 1 asked for, None in the run"]


def test_fields_of_another_version_are_rejected() -> None:
    for part in ("", "data", "model"):
        written = config.resolve(BASE)
        (written[part] if part else written)["dropout"] = 0.5
        with pytest.raises(UserError, match=r"dropout.*Another version"):
            config.restore(Experiment, written)
    written = config.resolve(BASE)
    del written["data"]["name"]
    with pytest.raises(UserError, match=r"name.*Another version"):
        config.restore(Experiment, written)


def test_missing_class_names_the_nearest() -> None:
    for written, message in (
        ("resnet_jax.models.shortcuts:ZeroPat", r"ZeroPat.*did you mean ZeroPad"),
        ("resnet_jax.models.shortcuts:ZeroPad(resise='pad')", r"no argument 'resise'; did you mean resize"),
    ):
        text = config.resolve(BASE)
        text["model"]["shortcut"] = written
        with pytest.raises(UserError, match=message):
            config.restore(Experiment, text)
    assert config.restore(type[ZeroPad], "resnet_jax.models.shortcuts:ZeroPad") is ZeroPad
