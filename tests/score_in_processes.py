"""One of several processes that share the scoring of `digits`, by ten crops and at several sizes: PROCESS PROCESSES ADDRESS DATA_DIR."""

import dataclasses
import functools
import json
import sys

import jax
import numpy as np
from resnet_jax import distributed
from resnet_jax.data import datasets
from resnet_jax.data.augment_device import Preprocessing
from resnet_jax.evaluation import dense, exact, protocols
from resnet_jax.models import cifar_architecture
from resnet_jax.training import sharding


def main(process: int, processes: int, address: str, data_dir: str) -> None:
    if processes > 1:
        distributed.connect(distributed.Joining(coordinator=address, processes=processes, process=process))
    mesh = sharding.make()
    of_batch, init = sharding.batch(mesh), cifar_architecture(8, input_shape=(8, 8, 1)).init
    apply, *variables = jax.jit(init, out_shardings=sharding.replicated(mesh))(jax.random.key(0))
    constants = Preprocessing(np.zeros(1, np.float32), np.ones(1, np.float32))
    info = datasets.describe("digits", data_dir)
    protocol = protocols.Protocol(resize=10, crop=8, crops=10)
    ten = exact.tally(
        jax.jit(functools.partial(exact.score_batch, *variables, constants, apply=apply)),
        protocols.batches(info, "test", protocol, 500, process=process, processes=processes),
        batch_size=500,
        expected_examples=360,
        sharding=of_batch,
        processes=processes,
    )
    protocol = protocols.parse("multi-scale-32,64")
    several = dense.evaluate(apply, *variables, constants, info, "test", protocol, pixels=100 * 64 * 64, sharding=of_batch)
    print(json.dumps([dataclasses.asdict(score) for score in (ten, several)]))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
