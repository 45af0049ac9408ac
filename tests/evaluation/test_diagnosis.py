"""Each usual misreading, planted on purpose, is found; what is not misread has no cause."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from resnet_jax.configured import configured
from resnet_jax.data.augmentation import Preprocessing
from resnet_jax.data.sources import Examples
from resnet_jax.evaluation import diagnosis, exact
from resnet_jax.evaluation.diagnosis import Diagnosis, Reading
from resnet_jax.models import Apply, Architecture, Card, Pretrained, View, cifar_architecture
from resnet_jax.models.branches import Bottleneck
from resnet_jax.models.norms import BatchNorm, GroupNorm
from resnet_jax.models.pretrained.card import IMAGENET_VIEW
from resnet_jax.models.shortcuts import Projection, ZeroPad
from resnet_jax.models.stems import CeilPooledStem, DeepStem, ImageNetStem

# Everything that can be misread in one network. Images of 32 pixels become 8 in the stem, and 4 and 2 in the stages.
NETWORK = Architecture(
    stages=(1, 1, 1), features=(4, 8, 8), branch=Bottleneck, shortcut=ZeroPad, stem=ImageNetStem, input_shape=(32, 32, 3), num_classes=10
)
SEEN = View(mean=IMAGENET_VIEW.mean, deviation=IMAGENET_VIEW.deviation)
COUNT = 320


def images() -> np.ndarray:
    """Blobs of colour: a coarse random image enlarged, and noise upon it."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 200, (COUNT, 4, 4, 3)) * rng.uniform(0.3, 1, (COUNT, 1, 1, 3))
    return (coarse.repeat(8, 1).repeat(8, 2) + rng.uniform(0, 55, (COUNT, 32, 32, 3))).astype(np.uint8)


def logits(reading: Reading, shown: np.ndarray) -> np.ndarray:
    apply, (params, batch_stats) = reading.apply(), reading.variables()
    constants = Preprocessing(*reading.weights.card.constants())
    return np.asarray(jax.jit(lambda x: apply(params, batch_stats, constants(x), train=False)[0])(jnp.asarray(shown)))


@pytest.fixture(scope="module")
def weights() -> Pretrained:
    """Drawn; running variances are small enough for epsilon to matter."""
    _, params, batch_stats = jax.jit(NETWORK.init)(jax.random.key(2))
    rng = np.random.default_rng(1)

    def statistics(path: Any, a: Any) -> Any:
        return jnp.float32(rng.uniform(2e-3, 4e-3, a.shape) if path[-1].key == "var" else rng.normal(0, 0.03, a.shape))

    def scale(path: Any, a: Any) -> Any:
        return jnp.float32(rng.uniform(0.03, 0.07, a.shape)) if path[-1].key == "scale" else a

    card = Card(architecture=NETWORK, view=SEEN, source="drawn", data="none")
    return Pretrained(card, jax.tree.map_with_path(scale, params), jax.tree.map_with_path(statistics, batch_stats))


def labelled(weights: Pretrained, meant: Callable[[Pretrained], Reading]) -> tuple[Pretrained, Examples]:
    """The weights with a classifier that answers every class about as often, read as they are meant; and images with those answers as
    labels: the error of the meaning is 0.
    """
    answers, linear = logits(meant(weights), images()), weights.params["head"]["linear"]
    mean, spread = answers.mean(0), answers.std(0)
    linear = {"kernel": linear["kernel"] / spread, "bias": (linear["bias"] - mean) / spread}
    found = replace(weights, params=weights.params | {"head": weights.params["head"] | {"linear": linear}})
    labels = logits(meant(found), images()).argmax(-1).astype(np.int32)
    assert np.bincount(labels, minlength=10).max() < COUNT / 2
    return found, Examples(images(), labels)


def diagnosed(weights: Pretrained, data: Examples, claimed: float = 0.0, tried_on: int = COUNT) -> Diagnosis:
    def batches(count: int) -> Iterable[Examples]:
        return [Examples(data.images[at : min(at + 80, count)], data.labels[at : min(at + 80, count)]) for at in range(0, count, 80)]

    constants = Preprocessing(*weights.card.constants())
    found = exact.evaluate(weights.apply(), weights.params, weights.batch_stats, constants, data, batch_size=80, expected_examples=COUNT)
    return diagnosis.diagnose(
        weights, batches, error_percent=found.error_percent, images=COUNT, tried_on=tried_on, batch_size=80, claimed=claimed
    )


def with_network(weights: Pretrained, **fields: Any) -> Pretrained:
    return replace(weights, card=replace(weights.card, architecture=replace(weights.architecture, **fields)))


def with_view(weights: Pretrained, mean: tuple[float, ...], deviation: tuple[float, ...]) -> Pretrained:
    return replace(weights, card=replace(weights.card, view=View(mean=mean, deviation=deviation)))


SLIGHT = configured(BatchNorm, epsilon=1e-3)
# How the weights are meant, where they are read as NETWORK and SEEN say; and what is said of it.
MEANT: dict[str, tuple[Any, set[str]]] = {
    "padding": (lambda w: Reading(w, same_padding=True), {"padding: right and below at stride 2 (SAME)"}),
    "channels": (lambda w: Reading(w, blue_first=True), {"channels of images: blue, green, red"}),
    "normalisation": (lambda w: Reading(with_view(w, (0.5,) * 3, (0.5,) * 3)), {"normalisation: mean and deviation 0.5"}),
    "0 to 255": (lambda w: Reading(with_view(w, (0.0,) * 3, (1 / 255,) * 3)), {"normalisation: values of 0 to 255"}),
    "stride": (
        lambda w: Reading(with_network(w, branch=configured(Bottleneck, stride_at=1))),
        {"stride of bottlenecks: in the 3x3 (v1.5)"},
    ),
    "epsilon": (lambda w: Reading(with_network(w, norm=SLIGHT)), {"epsilon of BatchNorm: 0.001"}),
    "option A": (
        lambda w: Reading(with_network(w, shortcut=configured(ZeroPad, resize="pad-both"))),
        {"option A: missing channels on both sides of those of x"},
    ),
    "pooling": (
        lambda w: Reading(with_network(w, stem=CeilPooledStem)),
        {"pooling of the stem: from the first pixel, rounded up (Caffe)"},
    ),
    "two": (
        lambda w: Reading(with_network(w, shortcut=configured(ZeroPad, resize="pad-both")), blue_first=True),
        {"channels of images: blue, green, red", "option A: missing channels on both sides of those of x"},
    ),
    "two others": (
        lambda w: Reading(with_view(with_network(w, norm=SLIGHT), (0.5,) * 3, (0.5,) * 3)),
        {"normalisation: mean and deviation 0.5", "epsilon of BatchNorm: 0.001"},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MEANT)
def test_a_misreading_is_named(name: str, weights: Pretrained) -> None:
    meant, said = MEANT[name]
    read, data = labelled(weights, meant)
    found = diagnosed(read, data)
    assert set(found.causes) == said
    assert found.error_percent == 0
    first = found.rounds[0]
    assert first[0].change == ""
    assert first[0].error_percent > 1
    assert len(found.rounds) == len(said)
    # The best reading answers as the truth does.
    np.testing.assert_array_equal(logits(found.reading, data.images).argmax(-1), data.labels)
    kept = diagnosis.applied(found.reading)
    if name == "padding":
        assert kept is None
    else:
        assert kept is not None
        np.testing.assert_array_equal(logits(Reading(kept), data.images).argmax(-1), data.labels)


def test_nothing_is_named_where_nothing_was_misread(weights: Pretrained) -> None:
    """As claimed: nothing is even tried. Worse than claimed, with no reading better: no cause, and the reading as it was given."""
    weights, data = labelled(weights, Reading)
    found = diagnosed(weights, data)
    assert (found.causes, found.rounds, found.error_percent, found.reading) == ((), (), 0.0, Reading(weights))
    wrong = replace(data, labels=np.where(np.arange(COUNT) % 4 == 0, (data.labels + 5) % 10, data.labels).astype(np.int32))
    found = diagnosed(weights, wrong, claimed=5.0, tried_on=160)
    assert (found.causes, len(found.rounds), found.error_percent) == ((), 1, 25.0)
    assert found.reading.weights is weights


class Script:
    """Errors by reading in place of ``exact.evaluate``: of few images (a list: one round after another), and of all."""

    def __init__(self, errors: dict[str, tuple[Any, float]], otherwise: float):
        self.errors, self.otherwise = errors, otherwise

    def __call__(self, apply: Apply, params: Any, batch_stats: Any, constants: Preprocessing, data: Any, **options: Any) -> exact.Score:
        few, every = self.errors.get(
            f"{float(constants.mean[0]):.3f} {float(constants.deviation[0]):.3f}", (self.otherwise, self.otherwise)
        )
        percent = every if options["expected_examples"] == 10_000 else few.pop(0) if isinstance(few, list) else few
        return exact.Score(round(percent * 100), 0.0, 10_000, 0)


def scripted(monkeypatch: pytest.MonkeyPatch, weights: Pretrained, errors: dict[str, tuple[Any, float]], otherwise: float) -> Diagnosis:
    monkeypatch.setattr(exact, "evaluate", Script(errors, otherwise))
    grey = with_view(weights, (0.25,) * 3, (1.0,) * 3)
    given = errors["0.250 1.000"][1]
    return diagnosis.diagnose(grey, lambda count: [], error_percent=given, images=10_000, tried_on=1000, batch_size=100, claimed=8.27)


def test_readings_that_few_images_cannot_tell_apart_are_decided_on_all(monkeypatch: pytest.MonkeyPatch, weights: Pretrained) -> None:
    """The numbers of a real checkpoint read with values of 0 to 1: on 1000 images a wrong normalisation was ahead."""
    errors = {"0.250 1.000": (58.7, 60.27), "0.485 0.229": (8.0, 8.27), "0.491 0.202": (7.7, 8.51), "0.500 0.500": (17.2, 17.5)}
    found = scripted(monkeypatch, weights, errors, 90.0)
    assert found.causes == ("normalisation: ImageNet's mean and deviation",)
    assert (found.error_percent, len(found.rounds)) == (8.27, 1)


def test_a_gain_within_the_tolerance_is_no_cause(monkeypatch: pytest.MonkeyPatch, weights: Pretrained) -> None:
    found = scripted(monkeypatch, weights, {"0.250 1.000": (8.5, 8.5), "0.485 0.229": (8.4, 8.45)}, 8.5)
    assert (found.causes, found.error_percent) == ((), 8.5)


def test_a_later_round_takes_the_place_of_an_earlier_one(monkeypatch: pytest.MonkeyPatch, weights: Pretrained) -> None:
    """A second normalisation is not named beside the first."""
    errors = {"0.250 1.000": (60.0, 60.0), "0.491 0.247": (20.0, 20.0), "0.485 0.229": ([40.0, 5.0], 8.27)}
    found = scripted(monkeypatch, weights, errors, 90.0)
    assert [min(each[1:], key=lambda trial: trial.error_percent).change for each in found.rounds] == [
        "normalisation: CIFAR-10's mean and deviation",
        "normalisation: ImageNet's mean and deviation",
    ]
    assert found.causes == ("normalisation: ImageNet's mean and deviation",)


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    "model",
    [
        cifar_architecture(8, features=(4, 8, 8)),
        NETWORK,
        pytest.param(replace(NETWORK, branch=configured(Bottleneck, stride_at=1)), marks=pytest.mark.slow),
        pytest.param(replace(NETWORK, stem=DeepStem), marks=pytest.mark.slow),
    ],
    ids=["cifar", "7x7", "v1.5", "deep stem"],
)
def test_same_padding_is_xlas(model: Architecture) -> None:
    """Of every strided convolution, on images of even size; the first one of ours differs from it."""
    _, params, batch_stats = jax.jit(model.init)(jax.random.key(0))
    weights = Pretrained(Card(architecture=model, view=SEEN, source="drawn"), params, batch_stats)
    apply = Reading(weights, same_padding=True).apply()
    ours: Any = nnx.merge(apply.graphdef, params, batch_stats)
    theirs: Any = weights.build()
    strided = 0
    for _, module in nnx.iter_graph(theirs):
        if isinstance(module, nnx.Conv) and module.strides not in ((1, 1), 1):
            assert set(np.ravel(module.strides)) == {2}
            module.padding, module.conv_general_dilated = "SAME", lax.conv_general_dilated
            strided += 1
    assert strided
    x = jax.random.normal(jax.random.key(1), (2, *model.input_shape))
    found, expected, symmetric = (np.asarray(jax.jit(lambda x, m=module: m(x))(x)) for module in (ours, theirs, weights.build()))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.max(np.abs(found - symmetric)) > 1e-4


@pytest.mark.quick(1)
@pytest.mark.parametrize("model", [replace(NETWORK, stem=DeepStem), cifar_architecture(8)], ids=["deep stem", "cifar"])
def test_blue_first_is_images_turned_round(model: Architecture) -> None:
    """After their normalisation: red is normalised as red wherever it stands."""
    _, params, batch_stats = jax.jit(model.init)(jax.random.key(0))
    weights = Pretrained(Card(architecture=model, view=SEEN, source="drawn"), params, batch_stats)
    x = jax.random.normal(jax.random.key(1), (2, *model.input_shape))
    turned, _ = Reading(weights, blue_first=True).variables()
    answer = jax.jit(lambda params, x: weights.apply()(params, batch_stats, x, train=False)[0])
    found, expected = answer(turned, x), answer(params, x[..., ::-1])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    changed = jax.tree.map(lambda a, b: bool(np.any(np.asarray(a) != np.asarray(b))), turned, params)
    assert sum(jax.tree.leaves(changed)) == 1


def test_only_what_a_network_has_is_tried() -> None:
    """A grey network of projections and GroupNorm can be misread in its padding alone."""
    model = cifar_architecture(8, input_shape=(8, 8, 1), shortcut=Projection, norm=configured(GroupNorm, num_groups=4))
    _, params, batch_stats = jax.eval_shape(lambda: model.init(jax.random.key(0)))
    view = View(mean=(0.5,), deviation=(0.5,))
    weights = Pretrained(Card(architecture=model, view=view, source="drawn"), params, batch_stats)
    assert [change for change, _ in diagnosis.alternatives(Reading(weights))] == ["padding: right and below at stride 2 (SAME)"]


def test_every_change_can_be_undone_and_says_so(weights: Pretrained) -> None:
    """Each alternative differs from the reading in one aspect; among its own alternatives there is the way back."""
    start = Reading(with_network(weights, norm=configured(BatchNorm, epsilon=1e-5)))

    def aspects(reading: Reading) -> dict[str, Any]:
        return {name: of(reading) for name, of in diagnosis._ASPECTS.items()}

    for change, reading in diagnosis.alternatives(start):
        differing = [name for name, value in aspects(start).items() if aspects(reading)[name] != value]
        assert differing == [change.partition(":")[0]]
        assert any(aspects(back) == aspects(start) for _, back in diagnosis.alternatives(reading)), change
