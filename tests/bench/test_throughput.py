"""Ours and the peers do the same work; what a row says follows from what was measured."""

import dataclasses
import importlib.util

import jax
import numpy as np
import pytest

from resnet_jax import models
from resnet_jax.bench import throughput
from resnet_jax.bench.peers import linen, torch_networks
from resnet_jax.bench.peers.peer import Peer
from resnet_jax.bench.workload import Workload
from resnet_jax.models import Execution
from resnet_jax.plan import arithmetic

TINY = models.cifar_architecture(8, input_shape=(8, 8, 3), features=(4, 8, 16))
# Table 6 of He et al. 2015 has 0.27 M for ResNet-20; torchvision's documentation 25,557,032 for resnet50 and 11,689,512 for resnet18.
PUBLISHED = {"resnet18": 11_689_512, "resnet50_v15": 25_557_032, "resnet50": 25_557_032}


@pytest.fixture(autouse=True)
def _small_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput.ceilings, "sizes", lambda backend: (64, 1))


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", ["cifar_resnet20", *PUBLISHED])
def test_the_linen_peer_has_our_parameters_and_multiply_adds(name: str) -> None:
    network = models.architecture(name)
    peer = throughput._linen(network)
    assert peer is not None
    images = jax.ShapeDtypeStruct((1, *network.input_shape), np.float32)
    abstract = jax.eval_shape(lambda key, images: peer.init(key, images, train=False), jax.eval_shape(lambda: jax.random.key(0)), images)
    counts = models.count(network)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract["params"]))
    assert parameters == counts.parameters == PUBLISHED.get(name, counts.parameters)
    traced = jax.jit(lambda variables, images: peer.apply(variables, images, train=False)).trace(abstract, images)
    ours = Workload(network, 1, Execution())
    state = ours.abstract_state
    own = ours.infer.trace(state.params, state.batch_stats, ours.abstract_batch().images)
    assert arithmetic.flops(traced.jaxpr) == arithmetic.flops(own.jaxpr)


@pytest.mark.parametrize("name", ["preresnet50", "resnet50_d", "cifar_preresnet110", "wrn16_4", "cifar_fixup110", "seresnet50"])
def test_no_plain_peer_is_offered_for_other_networks(name: str) -> None:
    assert throughput._linen(models.architecture(name)) is None


def test_rows_follow_from_what_was_measured() -> None:
    rows = list(
        throughput.measure("tiny", TINY, works=("training", "inference"), batch_size=4, execution=Execution(), peers=False, count=2)
    )
    assert [row["work"] for row in rows] == ["training", "inference"]
    for row in rows:
        np.testing.assert_allclose(row["images_per_second"] * row["seconds"], 4)
        assert row["ours_over_this"] == 1
        assert row["bytes"] > 4 * row["parameters"]
        np.testing.assert_allclose(row["share_of_matrix"] * row["matrix_flops_per_second"] * row["seconds"], row["flops"])
        assert row["peak_bytes"] > 0


def test_a_step_costs_three_times_an_inference() -> None:
    """Two gradients of every convolution and product, each as dear; the images themselves may need none."""
    work = Workload(models.architecture("cifar_resnet20"), 2, Execution())
    state, batch = work.abstract_state, work.abstract_batch()
    training = arithmetic.flops(work.step.trace(state, batch).jaxpr)
    inference = arithmetic.flops(work.infer.trace(state.params, state.batch_stats, batch.images).jaxpr)
    # Of 40.6 million multiply-adds the first layer has 0.44.
    assert 3 - 0.44 / 40.6 - 0.01 < training / inference <= 3


def test_a_peer_that_does_other_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(*_: object) -> list[object]:
        return [lambda: Peer("other", "1", 7, lambda: None)]

    monkeypatch.setattr(throughput, "_peers", other)
    with pytest.raises(RuntimeError, match="other has 7 parameters.*not the same work"):
        list(throughput.measure("tiny", TINY, works=("inference",), batch_size=2, execution=Execution(), peers=True, count=1))


def test_a_peer_that_does_not_run_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Peer:
        raise ValueError("no compiler")

    monkeypatch.setattr(throughput, "_peers", lambda *_: [broken])
    (row,) = throughput.measure("tiny", TINY, works=("inference",), batch_size=2, execution=Execution(), peers=True, count=1)
    assert row["failed_peers"] == ["ValueError: no compiler"]


@pytest.mark.slow
def test_the_linen_peer_trains() -> None:
    found = throughput._linen(TINY)
    assert found is not None
    peer = linen.peer(linen.plain(found), TINY.input_shape, TINY.num_classes, 2, "training")
    peer.run()
    peer.run()
    assert peer.parameters == models.count(TINY).parameters


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed: the extra bench")
@pytest.mark.parametrize("name", ["cifar_resnet20", "resnet18", "resnet50_v15"])
def test_torch_peers_have_our_parameters(name: str) -> None:
    network = models.architecture(name)
    made = list(torch_networks.makers(name, tuple(network.stages), tuple(network.features), network.num_classes))
    assert made
    for _, _, make in made:
        assert sum(parameter.numel() for parameter in make().parameters()) == models.count(network).parameters


def test_he_2015s_bottlenecks_are_not_torchvisions() -> None:
    """resnet50 has the stride in the first 1x1: 3.8 rather than 4.1 G multiply-adds."""
    assert "resnet50" not in torch_networks.THEIRS["torchvision"]
    assert torch_networks.THEIRS["timm"]["resnet50_v15"] == "resnet50"


def test_all_networks_are_looked_up_first() -> None:
    ((name, network),) = throughput.networks(["cifar_resnet20"], "bfloat16")
    assert (name, network) == ("cifar_resnet20", dataclasses.replace(models.architecture("cifar_resnet20"), dtype="bfloat16"))
