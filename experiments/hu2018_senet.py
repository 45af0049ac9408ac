"""Squeeze-and-excitation: SE-ResNet and SE-ResNeXt on ImageNet. Hu et al. 2018, arXiv 1709.01507.

Command: resnet-jax study hu2018_senet:imagenet --seeds 1 --workdir runs/senet
Recipe: from memory: batch 1024 on 8 GPUs, 0.6 divided by 10 every 30 of 100 epochs, reduction 16,
    RandomResizedCrop, flip, mean per channel; one 224 crop from 256.
Deviation: images are also divided by the deviation; bilinear crops; BatchNorm over 128 images.
"""

from resnet_jax.models.catalog import variant
from resnet_jax.training.config import Experiment
from resnet_jax.training.recipes import Study, in_epochs

NETWORKS = "seresnet50", "seresnet101", "seresnet152", "seresnext50_32x4d", "seresnext101_32x4d"


def _recipe(network: str) -> Experiment:
    return in_epochs(
        network.replace("_", "-"),
        variant(network, norm="BatchNorm(group_size=128)"),
        batch_size=1024,
        epochs=100,
        decays=(30, 60, 90),
        learning_rate=0.6,
    )


def imagenet() -> Study:
    """Top-1/top-5 error (authors' repository), in the order of ``NETWORKS``.

    22.37/6.36 %, 21.75/5.72, 21.34/5.54; SE-ResNeXt 20.97/5.54, 19.81/4.96.
    """
    return tuple(map(_recipe, NETWORKS))
