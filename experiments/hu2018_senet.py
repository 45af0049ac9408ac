"""Squeeze-and-excitation: SE-ResNet and SE-ResNeXt on ImageNet. Hu et al. 2018, arXiv 1709.01507.

Command: resnet-jax study hu2018_senet:imagenet --seeds 1 --workdir runs/senet
Recipe: from memory: batch 1024 on 8 GPUs, 0.6 divided by 10 every 30 of 100 epochs, reduction 16,
    RandomResizedCrop, flip, mean per channel; one 224 crop from 256.
Deviation: images are also divided by the deviation; bilinear crops; BatchNorm over 128 images.
"""

from resnet_jax.models.catalog import variant
from resnet_jax.training.config import IMAGENET, Experiment, Schedule, Study, evaluate_every

NETWORKS = "seresnet50", "seresnet101", "seresnet152", "seresnext50_32x4d", "seresnext101_32x4d"
EPOCH = -(-1_281_167 // 1024)


def _recipe(network: str) -> Experiment:
    return Experiment(
        name=network.replace("_", "-"),
        model=variant(network, norm="BatchNorm(group_size=128)"),
        data=IMAGENET,
        schedule=Schedule(learning_rate=0.6, decay_steps=(30 * EPOCH, 60 * EPOCH, 90 * EPOCH)),
        steps=100 * EPOCH,
        batch_size=1024,
        **evaluate_every(EPOCH),
    )


def imagenet() -> Study:
    """Top-1/top-5 error (authors' repository), in the order of ``NETWORKS``.

    22.37/6.36 %, 21.75/5.72, 21.34/5.54; SE-ResNeXt 20.97/5.54, 19.81/4.96.
    """
    return tuple(map(_recipe, NETWORKS))
