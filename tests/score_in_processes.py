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
    over = sharding.make()
    apply, params, batch_stats = jax.jit(cifar_architecture(8, input_shape=(8, 8, 1)).init, out_shardings=sharding.replicated(over))(
        jax.random.key(0)
    )
    info = datasets.describe("digits", data_dir)
    batches = protocols.batches(info, "test", protocols.Protocol(resize=10, crop=8, crops=10), 500, process=process, processes=processes)
    constants = Preprocessing(np.zeros(1, np.float32), np.ones(1, np.float32))
    of_batch = jax.jit(functools.partial(exact.score_batch, apply=apply))
    found = exact.tally(
        lambda images, labels: of_batch(params, batch_stats, constants, images, labels),
        batches,
        batch_size=500,
        expected_examples=360,
        sharding=sharding.batch(over),
        processes=processes,
    )
    whole = dense.evaluate(
        apply,
        params,
        batch_stats,
        constants,
        info,
        "test",
        protocols.parse("multi-scale-32,64"),
        pixels=100 * 64 * 64,
        sharding=sharding.batch(over),
    )
    print(json.dumps([dataclasses.asdict(each) for each in (found, whole)]))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
