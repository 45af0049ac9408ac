"""ImageNet networks of He et al. 2015 (arXiv 1512.03385), Tables 1 to 4.

Command: resnet-jax train he2015_imagenet:resnet50 --workdir runs/r50
    resnet-jax evaluate runs/r50 --protocol 256/224 ten-crop multi-scale
Recipe: SGD, momentum 0.9, weight decay 1e-4, batch 256, 0.1 divided by 10 at plateaus, up to 600k
    steps (Section 3.4); shorter side in [256, 480], 224 crop, flip, AlexNet's color augmentation,
    mean image; BatchNorm over 32 images (eight GPUs), precise BN as in the released models.
Deviation: plateaus at 30 and 60 epochs of 5,005 steps, as in He et al. 2016; precise BN over 40
    batches is our choice; mean image of 10,000 training images.
Expect: top-1 error with 10 crops; one crop: 224 from 256 (authors' repository).
"""

from dataclasses import replace

from resnet_jax.data.augment_device import PcaLighting
from resnet_jax.data.augment_host import ShorterSideCrop
from resnet_jax.models.catalog import variant
from resnet_jax.training.config import Checkpointing, Experiment
from resnet_jax.training.recipes import IMAGENET, Study, in_epochs

DATA = replace(IMAGENET, normalization="pixel_mean", crop=ShorterSideCrop, color=PcaLighting)


def _recipe(network: str, option: str = "", **fields: str) -> Experiment:
    model = variant(network, norm="BatchNorm(group_size=32)", **fields)
    evaluation = {"every": 5000, "statistics_batches": 40}
    experiment = in_epochs(network + option, model, DATA, evaluation=evaluation)
    return replace(experiment, steps=600_000, checkpointing=Checkpointing(every=5000))


def resnet18() -> Experiment:
    """Table 2, option A: 27.88 % top-1 with 10 crops."""
    return _recipe("resnet18", shortcut="A")


def resnet34() -> Experiment:
    """Tables 2 and 3, option A: 25.03 % top-1, 7.76 % top-5 with 10 crops."""
    return _recipe("resnet34", shortcut="A")


def resnet34_b() -> Experiment:
    """Table 3, option B: 24.52 % top-1, 7.46 % top-5 with 10 crops."""
    return _recipe("resnet34", "-b", shortcut="B")


def resnet34_c() -> Experiment:
    """Table 3, option C: 24.19 % top-1, 7.40 % top-5 with 10 crops."""
    return _recipe("resnet34", "-c", shortcut="C")


def resnet50() -> Experiment:
    """24.7 % top-1, one crop. Table 3: 22.85 % top-1, 6.71 % top-5 with 10 crops."""
    return _recipe("resnet50")


def resnet101() -> Experiment:
    """23.6 % top-1, one crop. Table 3: 21.75 % top-1, 6.05 % top-5 with 10 crops."""
    return _recipe("resnet101")


def resnet152() -> Experiment:
    """23.0 % top-1, one crop. Table 3: 21.43 % top-1, 5.71 % top-5 with 10 crops."""
    return _recipe("resnet152")


def plain18() -> Experiment:
    """Table 2: 27.94 % top-1 with 10 crops."""
    return _recipe("plain18")


def plain34() -> Experiment:
    """Tables 2 and 3: 28.54 % top-1, 10.02 % top-5 with 10 crops."""
    return _recipe("plain34")


def plain50() -> Experiment:
    """Not in the paper."""
    return _recipe("plain50")


def plain101() -> Experiment:
    """Not in the paper."""
    return _recipe("plain101")


def plain152() -> Experiment:
    """Not in the paper."""
    return _recipe("plain152")


def table2() -> Study:
    """Table 2."""
    return plain18(), resnet18(), plain34(), resnet34()


def table3() -> Study:
    """Table 3."""
    return plain34(), resnet34(), resnet34_b(), resnet34_c(), resnet50(), resnet101(), resnet152()
