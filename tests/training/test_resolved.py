"""Experiments as JSON and back, and what makes two of them the same run."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from resnet_jax import references
from resnet_jax.configured import configured
from resnet_jax.errors import UserError
from resnet_jax.models import NETWORKS, Architecture, Execution, StochasticDepth, cifar_architecture
from resnet_jax.models.branches import Basic, Bottleneck
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.orders import FullPreactivation, Original
from resnet_jax.models.shortcuts import NoShortcut, Scaled, ShortcutOnlyGating, ZeroPad
from resnet_jax.models.stems import DeepStem
from resnet_jax.models.transitions import DenseTransition, NoTransition
from resnet_jax.training import resolved
from resnet_jax.training.experiment import Checkpointing, Data, Evaluation, Experiment, Loading, Loss, Optimizer, Schedule, Start

ROOT = Path(__file__).parents[2]
OWN = """
from flax import nnx
from resnet_jax.models import cifar_architecture
from resnet_jax.training.experiment import Data, Experiment


class Own(nnx.Module):
    def __init__(self, in_features, out_features, stride, rngs):
        pass

    def __call__(self, x, branch):
        return branch


def experiment():
    return Experiment(name="own", model=cifar_architecture(8, shortcut=Own), data=Data(name="digits"))
"""


def public(file: Path) -> dict[str, Experiment]:
    """What the public functions of a file of experiments return."""
    module = references.load_file(file)
    found = {}
    for name in references.public_names(module):
        value = getattr(module, name)()
        for index, experiment in enumerate(value if isinstance(value, tuple) else (value,)):
            found[f"{file.stem}:{name}{index or ''}"] = experiment
    return found


EXPERIMENTS = {name: found for file in sorted((ROOT / "experiments").glob("*.py")) for name, found in public(file).items()}
BASE = Experiment(name="resnet20", model=cifar_architecture(20), data=Data(name="cifar10"))


def test_there_are_experiments_to_try() -> None:
    assert {"he2015_cifar10:resnet110", "he2015_imagenet:resnet50", "degradation:plain56"} <= EXPERIMENTS.keys()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_survives_json(name: str) -> None:
    """Every public function of every file: classes, tuples, missing values, all of it."""
    experiment = EXPERIMENTS[name]
    text = json.dumps(resolved.resolve(experiment))
    back = resolved.restore(Experiment, json.loads(text))
    assert back == experiment
    assert hash(back) == hash(experiment)
    assert back.model.shortcut == experiment.model.shortcut


def test_resolved_form_names_classes_and_lists_tuples() -> None:
    found = resolved.resolve(BASE)
    assert found["model"]["shortcut"] == "resnet_jax.models.shortcuts:ZeroPad"
    assert found["schedule"]["decay_steps"] == [32_000, 48_000]
    assert found["data"] == {
        "name": "cifar10",
        "validation_examples": 0,
        "test_split": "test",
        "normalization": "pixel_mean",
        "pad": 4,
        "flip": True,
    }


def test_own_class_of_a_file_survives_json(tmp_path: Path) -> None:
    """By the file's path: the class is found again."""
    (tmp_path / "own.py").write_text(OWN)
    experiment = references.load(f"{tmp_path}/own.py:experiment")()
    text = json.dumps(resolved.resolve(experiment))
    assert f"{tmp_path}/own.py:Own" in text
    assert resolved.restore(Experiment, json.loads(text)) == experiment


CONFIGURED = Architecture(
    stages=(2, 2),
    features=(8, 8),
    branch=configured(Bottleneck, groups=2, base_width=32, dropout=0.1),
    order=FullPreactivation,
    shortcut=configured(ShortcutOnlyGating, bias=-6, resize="pool-project"),
    stem=DeepStem,
    norm=configured(BatchNorm, momentum=0.99, group_size=64),
    transition=configured(NoTransition),
    stochastic_depth=StochasticDepth(survival=0.5, rule="uniform", drops="image", scaled="training"),
    output_stride=8,
)


def test_architecture_with_configured_parts_survives_json() -> None:
    """Every part with arguments, nested tuples, the fields of stochastic depth; types too: -6 is not -6.0."""
    found = resolved.resolve(CONFIGURED)
    assert found["branch"] == "resnet_jax.models.branches:Branch(base_width=32, dropout=0.1, expansion=4, groups=2, kernels=(1, 3, 1))"
    assert found["shortcut"] == "resnet_jax.models.shortcuts:ShortcutOnlyGating(bias=-6.0, resize='pool-project')"
    assert found["norm"] == "resnet_jax.models.norms:BatchNorm(group_size=64, momentum=0.99)"
    assert found["order"] == "resnet_jax.models.orders:FullPreactivation"
    assert found["stochastic_depth"] == {"survival": 0.5, "rule": "uniform", "drops": "image", "scaled": "training"}
    back = resolved.restore(Architecture, json.loads(json.dumps(found)))
    assert back == CONFIGURED
    assert hash(back) == hash(CONFIGURED)
    assert back.order is FullPreactivation
    assert resolved.resolve(back) == found
    assert resolved.restore(
        Architecture, json.loads(json.dumps(resolved.resolve(Architecture(stages=(1,), features=(4,)))))
    ) == Architecture(stages=(1,), features=(4,))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_of_the_catalog_survives_json(name: str) -> None:
    assert resolved.restore(Architecture, json.loads(json.dumps(resolved.resolve(NETWORKS[name])))) == NETWORKS[name]


ARGUMENTS = {
    "shortcut": (configured(ShortcutOnlyGating, bias=-6.0), configured(ShortcutOnlyGating, bias=-7.0)),
    "branch": (configured(Basic, dropout=0.3), configured(Basic, dropout=0.4)),
    "norm": (BatchNorm, configured(BatchNorm, group_size=64)),
    "transition": (configured(DenseTransition, compression=0.5), configured(DenseTransition, compression=1.0)),
    "stochastic_depth": (StochasticDepth(), StochasticDepth(survival=0.5)),
    "output_stride": (0, 8),
    "stem_features": (0, 8),
    "order": (Original, FullPreactivation),
}


@pytest.mark.parametrize("field", ARGUMENTS)
def test_fingerprint_changes_with_an_argument(field: str) -> None:
    """And the difference names the part, with its arguments."""
    one, other = (dataclasses.replace(BASE, model=dataclasses.replace(BASE.model, **{field: value})) for value in ARGUMENTS[field])
    assert resolved.fingerprint(identity(one)) != resolved.fingerprint(identity(other))
    (difference,) = resolved.differences(identity(one), identity(other))
    assert difference.startswith(f"model.{field}")


def test_fingerprint_does_not_depend_on_the_order_of_arguments(tmp_path: Path) -> None:
    """Nor on the folder of a user's class with arguments."""
    ours, theirs = (configured(Scaled, **given) for given in ({"shortcut": 0.5, "branch": 1.0}, {"branch": 1.0, "shortcut": 0.5}))
    one, other = (dataclasses.replace(BASE, model=dataclasses.replace(BASE.model, shortcut=s)) for s in (ours, theirs))
    assert identity(one) == identity(other)
    found = []
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "mine.py").write_text("class Own:\n    def __init__(self, *args, scale=1.0, path=''):\n        pass\n")
        own = configured(references.load(f"{tmp_path / place}/mine.py:Own"), scale=0.7, path="a/b")
        found.append(identity(dataclasses.replace(BASE, model=dataclasses.replace(BASE.model, shortcut=own))))
        assert found[-1]["model"]["shortcut"] == "mine.py:Own(path='a/b', scale=0.7)"
    assert found[0] == found[1]


SAME_RUN = {
    "name": "another",
    "checkpointing": Checkpointing(every=7),
    "execution": Execution(blocks="loop", convolution="plain", steps_per_dispatch=10),
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


def identity(experiment: Experiment, seed: int = 0) -> dict[str, Any]:
    return resolved.identity(experiment, seed)


@pytest.mark.parametrize("field", SAME_RUN)
def test_identity_ignores_how_a_run_is_executed_and_what_it_is_called(field: str) -> None:
    other = dataclasses.replace(BASE, **{field: SAME_RUN[field]})
    assert other != BASE
    assert identity(other) == identity(BASE)
    assert resolved.fingerprint(identity(other)) == resolved.fingerprint(identity(BASE))


@pytest.mark.parametrize("field", ANOTHER_RUN)
def test_identity_holds_everything_that_changes_the_result(field: str) -> None:
    other = dataclasses.replace(BASE, **{field: ANOTHER_RUN[field]})
    assert resolved.fingerprint(identity(other)) != resolved.fingerprint(identity(BASE))
    (difference,) = resolved.differences(identity(other), identity(BASE))
    assert difference.startswith(field)


def test_every_field_is_known_to_change_the_result_or_not_to() -> None:
    """A new field of the experiment has to be put on one side. Scores are part of what a run is asked for."""
    assert {f.name for f in dataclasses.fields(Experiment)} == SAME_RUN.keys() | ANOTHER_RUN.keys()


def test_weights_that_a_run_starts_from_are_the_same_wherever_they_lie() -> None:
    """The numbers decide, and whether the classifier is theirs; not the file's name."""

    def begun(**fields: Any) -> dict[str, Any]:
        return identity(dataclasses.replace(BASE, start=Start(**{"file": "a", "digest": "ab"} | fields)))

    assert begun()["start"] == {"digest": "ab", "new_head": False}
    assert begun(file="/elsewhere/b") == begun()
    assert len({resolved.fingerprint(each) for each in (begun(), begun(digest="cd"), begun(new_head=True), identity(BASE))}) == 4


def test_fields_that_came_later_are_not_said_at_their_defaults() -> None:
    """Runs of before are the runs that they were: no new key, neither in what is written nor in the fingerprint."""
    written = resolved.resolve(BASE)
    assert "start" not in written
    assert "rates" not in written["optimizer"]
    assert "start" not in identity(BASE)
    later = dataclasses.replace(BASE, optimizer=Optimizer(rates=(("stages", 0.1), ("stages/2", 0.3))), start=Start(file="a", new_head=True))
    said = json.loads(json.dumps(resolved.resolve(later)))
    assert said["optimizer"]["rates"] == [["stages", 0.1], ["stages/2", 0.3]]
    assert resolved.restore(Experiment, said) == later
    assert resolved.fingerprint(identity(later)) != resolved.fingerprint(identity(BASE))


def test_seed_is_part_of_the_identity() -> None:
    assert resolved.fingerprint(identity(BASE, 0)) != resolved.fingerprint(identity(BASE, 1))
    assert list(resolved.differences(identity(BASE, 0), identity(BASE, 1))) == ["seed: 0 asked for, 1 in the run"]


def test_fingerprint_does_not_depend_on_the_order_of_fields() -> None:
    """And is 64 hexadecimal digits."""
    found = resolved.fingerprint({"a": 1, "b": {"c": 2, "d": 3}})
    assert found == resolved.fingerprint({"b": {"d": 3, "c": 2}, "a": 1})
    assert len(bytes.fromhex(found)) == 32


def test_differences_list_every_field_with_both_values() -> None:
    other = dataclasses.replace(
        BASE, model=cifar_architecture(20, shortcut=NoShortcut), steps=100, schedule=Schedule(learning_rate=0.2, decay_steps=(1,))
    )
    assert list(resolved.differences(identity(other), identity(BASE))) == [
        "model.shortcut: 'resnet_jax.models.shortcuts:NoShortcut' asked for, 'resnet_jax.models.shortcuts:ZeroPad' in the run",
        "schedule.decay_steps: [1] asked for, [32000, 48000] in the run",
        "schedule.learning_rate: 0.2 asked for, 0.1 in the run",
        "steps: 100 asked for, 64000 in the run",
    ]


def test_equal_identities_have_no_differences_also_after_json() -> None:
    assert list(resolved.differences(identity(BASE), json.loads(json.dumps(identity(BASE))))) == []


def test_differences_show_a_field_that_one_side_lacks() -> None:
    assert list(resolved.differences({"a": {"b": 1}}, {"a": {}})) == ["a.b: 1 asked for, None in the run"]


@pytest.mark.parametrize("part", ["", "data", "model"])
def test_unknown_field_is_an_error_that_names_it(part: str) -> None:
    """What another version wrote is not read half."""
    text = resolved.resolve(BASE)
    (text[part] if part else text)["dropout"] = 0.5
    with pytest.raises(UserError, match=r"has no field dropout.*another version"):
        resolved.restore(Experiment, text)


def test_missing_field_is_a_user_error() -> None:
    text = resolved.resolve(BASE)
    del text["data"]["name"]
    with pytest.raises(UserError, match="name"):
        resolved.restore(Experiment, text)


def test_class_that_is_gone_is_an_error_that_names_it() -> None:
    text = resolved.resolve(BASE)
    for written in ("resnet_jax.models.shortcuts:ZeroPat", "resnet_jax.models.shortcuts:ZeroPat(resize='pad')"):
        text["model"]["shortcut"] = written
        with pytest.raises(UserError, match=r"ZeroPat.*did you mean ZeroPad"):
            resolved.restore(Experiment, text)
    text["model"]["shortcut"] = "resnet_jax.models.shortcuts:ZeroPad(resise='pad')"
    with pytest.raises(UserError, match=r"no argument 'resise'; did you mean resize"):
        resolved.restore(Experiment, text)
    assert resolved.restore(type[ZeroPad], "resnet_jax.models.shortcuts:ZeroPad") is ZeroPad


def test_a_class_of_ones_own_is_the_same_wherever_its_file_lies(tmp_path: Path) -> None:
    """A run goes on after its project was moved, or the command was given from another folder; another file is another class."""
    text = "from flax import nnx\n\n\nclass Own(nnx.Module):\n    pass\n"
    identities = []
    for place in ("here/mine.py", "there/mine.py", "there/other.py"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text(text)
        own = references.load(f"{tmp_path / place}:Own")
        experiment = dataclasses.replace(BASE, model=dataclasses.replace(BASE.model, shortcut=own))
        identities.append(resolved.identity(experiment, 0))
        assert resolved.resolve(experiment)["model"]["shortcut"] == f"{tmp_path / place}:Own"
    assert identities[0] == identities[1]
    assert list(resolved.differences(identities[0], identities[2])) == [
        "model.shortcut: 'mine.py:Own' asked for, 'other.py:Own' in the run"
    ]
