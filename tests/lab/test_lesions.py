"""Lesions against networks that are walked through by hand, and the command on real runs."""

import csv
import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_up_network import EXAMPLES, MANY, SMALL, SMALL_PLAIN, compilations, shown, units_of, walk, weights_of
from scipy import stats

from resnet_jax import cli
from resnet_jax.data.sources import Examples
from resnet_jax.errors import UserError
from resnet_jax.lab import lesions, switched
from resnet_jax.lab.lesions import Lesion
from resnet_jax.models import asking
from resnet_jax.models.pretrained.loading import Pretrained


def undecided(weights: Pretrained) -> Pretrained:
    """With a bias that leaves every class its share of the images, so that lesions change answers."""
    logits = walk(weights, MANY.images, lambda _, unit, x: unit(x))
    head = weights.params["head"]
    return replace(weights, params=weights.params | {"head": {"linear": head["linear"] | {"bias": -logits.mean(0)}}})


@functools.cache
def residual() -> Pretrained:
    return undecided(weights_of(SMALL))


@functools.cache
def plain() -> Pretrained:
    return undecided(weights_of(SMALL_PLAIN, seed=5))


ALONE = [Lesion("one", (unit,)) for unit in range(3)]
LESIONS = [Lesion("none"), *ALONE, Lesion("several", (0, 2)), Lesion("exchanged", order=(1, 0, 2), pairs=1)]


def by_hand(weights: Any, lesion: Lesion) -> float:
    """Error in percent of the units that are called one by one, without the branches deleted."""
    _, units = units_of(weights)

    def called(number: int, unit: Any, x: Any) -> Any:
        if lesion.order:
            unit = units[lesion.order[number]]
        if number not in lesion.deleted:
            return unit(x)
        if weights is residual():
            return jax.nn.relu(asking.call(unit.shortcut, x, jnp.zeros_like(unit.branch(x)), train=False))
        same = x.shape == unit.branch(x).shape
        return jax.nn.relu(x if same else jnp.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (0, 1))))

    wrong = np.argmax(walk(weights, MANY.images, called), axis=1) != MANY.labels
    return 100 * float(np.mean(wrong))


@pytest.mark.quick(1)
@pytest.mark.parametrize("network", [residual, plain])
def test_errors_are_those_of_the_network_walked_through_without_what_was_deleted(network: Callable[[], Pretrained]) -> None:
    weights = network()
    found = lesions.measure(weights, MANY, LESIONS, batch_size=32)
    np.testing.assert_allclose(found, [by_hand(weights, lesion) for lesion in LESIONS])
    assert len(set(found)) > 3, "lesions that change nothing would show nothing"


def test_factors_of_1_and_the_identity_are_the_plain_evaluation_bit_for_bit() -> None:
    weights, images = residual(), shown(MANY.images)
    apply, given = weights.apply(), {"multipliers": jnp.ones(3), "permutation": jnp.arange(3)}
    whole = jax.jit(lambda *given: apply(*given, train=False)[0])(weights.params, weights.batch_stats, images)
    lesioned = jax.jit(lambda *given, **more: apply(*given, **more, train=False)[0])(weights.params, weights.batch_stats, images, **given)
    np.testing.assert_array_equal(lesioned, whole)


def test_a_plain_network_with_all_switches_at_1_is_itself_bit_for_bit() -> None:
    weights, images = plain(), shown(MANY.images)
    apply = weights.apply()
    network = switched.network(SMALL_PLAIN, switched.HandedOn)
    whole = jax.jit(lambda *given: apply(*given, train=False)[0])(weights.params, weights.batch_stats, images)
    lesioned = jax.jit(network)(weights.params, weights.batch_stats, images, jnp.ones(3), permutation=jnp.arange(3))
    np.testing.assert_array_equal(lesioned, whole)


def test_all_lesions_are_one_program() -> None:
    planned = lesions.plan([range(2), range(2, 3)], draws=9)
    lesions.measure(residual(), MANY, planned[:1], batch_size=35)  # what evaluation itself needs is compiled here
    with compilations() as compiled:
        lesions.measure(residual(), MANY, planned, batch_size=35)
        assert compiled == []
        lesions.measure(residual(), MANY, planned, batch_size=14)
    assert len(planned) > 200
    assert len(compiled) == 1, "another size of the batches is the one that another program is for"


def test_the_plan_has_every_unit_alone_and_as_many_draws_of_every_number() -> None:
    runs = [range(4), range(4, 5), range(5, 8)]
    planned = lesions.plan(runs, most_deleted=5, most_exchanged=3, draws=4, seed=1)
    assert planned[0] == Lesion("none")
    assert [lesion.deleted for lesion in planned if lesion.kind == "one"] == [(unit,) for unit in range(8)]
    several = [lesion.deleted for lesion in planned if lesion.kind == "several"]
    assert [len(units) for units in several] == [number for number in range(1, 6) for _ in range(4)]
    assert all(len(set(units)) == len(units) for units in several)
    for lesion in (lesion for lesion in planned if lesion.kind == "exchanged"):
        assert all(sorted(lesion.order[run.start : run.stop]) == list(run) for run in runs)
    one = [lesion for lesion in planned if lesion.pairs == 1]
    assert len(one) == 4
    assert all(sum(unit != place for place, unit in enumerate(lesion.order)) == 2 for lesion in one)
    assert planned == lesions.plan(runs, most_deleted=5, most_exchanged=3, draws=4, seed=1)
    assert planned != lesions.plan(runs, most_deleted=5, most_exchanged=3, draws=4, seed=2)


def test_no_more_is_deleted_than_there_is_and_nothing_exchanged_where_all_units_differ() -> None:
    planned = lesions.plan([range(1), range(1, 2), range(2, 3)])
    assert max(len(lesion.deleted) for lesion in planned) == 2
    assert not any(lesion.order for lesion in planned)


def test_tau_counts_pairs_out_of_order() -> None:
    """Of 4 units 6 pairs: neighbours exchanged turn one of them, ends exchanged five."""
    assert Lesion("none").tau == 1
    np.testing.assert_allclose(Lesion("exchanged", order=(1, 0, 2, 3)).tau, (5 - 1) / 6)
    np.testing.assert_allclose(Lesion("exchanged", order=(3, 1, 2, 0)).tau, (1 - 5) / 6)
    assert stats.kendalltau([0, 1, 2], [2, 1, 0])[0] == -1


@pytest.mark.parametrize(
    ("lesion", "message"),
    [(Lesion("one", (3,)), r"units \[3\] are to be deleted, .* 0 to 2"), (Lesion("exchanged", order=(0, 2, 1)), "unequal structure")],
)
def test_what_cannot_be_done_is_refused(lesion: Lesion, message: str) -> None:
    with pytest.raises(UserError, match=message):
        lesions.measure(residual(), EXAMPLES, [lesion])
    with pytest.raises(UserError, match="no images"):
        lesions.measure(residual(), Examples(EXAMPLES.images[:0], EXAMPLES.labels[:0]), [Lesion("none")])


def test_the_command_writes_beside_the_run(short_run: Path, digits_dir: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    cli.main(["lab", "lesions", str(short_run), "--images", "60", "--draws", "2", "--data-dir", digits_dir, "--to", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "2 units deleted" in printed
    found = json.loads((tmp_path / "lesions.json").read_text())
    assert found["title"] == "Lesions"
    with (tmp_path / "lesions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["lesion"] for row in rows[:4]] == ["none", "one", "one", "one"]
    (each,) = found["data"].values()
    assert [float(row["error percent"]) for row in rows] == [lesion["error_percent"] for lesion in each["lesions"]]
    assert (tmp_path / "lesions.png").read_bytes().startswith(b"\x89PNG")
    assert "error (%)" in (tmp_path / "lesions.svg").read_text()


@pytest.mark.parametrize(("options", "message"), [(("--draws", "0"), "--draws is 0"), (("--deleted", "-1"), "--deleted -1")])
def test_bad_numbers_are_refused(short_run: Path, options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["lab", "lesions", str(short_run), *options])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
