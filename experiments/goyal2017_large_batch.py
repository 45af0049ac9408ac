"""Large batches: ResNet-50 on ImageNet. Goyal et al. 2017, arXiv 1706.02677.

Command: resnet-jax study goyal2017_large_batch:scaling --seeds 1 --workdir runs/goyal
Recipe: batch kn on k GPUs, n = 32; linear warm-up from 0.1 to 0.1 kn / 256, divided by 10 at 30,
    60, 80 of 90 epochs; Nesterov momentum, no weight decay on BatchNorm; last scale of branches
    starts at 0 (Section 5.1); BatchNorm over n images; RandomResizedCrop, flip.
Deviation: no weight decay on the classifier's bias; no color augmentation; bilinear crops (not
    stated).
Hardware: paper: up to 256 P100.
"""

from resnet_jax.models.catalog import variant
from resnet_jax.training.config import Experiment, Optimizer
from resnet_jax.training.recipes import Study, in_epochs

PARTS = {"branch": "BottleneckV15(zero_scale=True)", "norm": "BatchNorm(group_size=32)"}


def _recipe(batch_size: int) -> Experiment:
    return in_epochs(
        f"batch-{batch_size}",
        variant("resnet50_v15", **PARTS),
        batch_size=batch_size,
        decays=(30, 60, 80),
        warmup=5 if batch_size > 256 else 0,
        optimizer=Optimizer(nesterov=True, decay="kernels"),
        learning_rate=0.1 * batch_size / 256,
        warmup_learning_rate=0.1,
    )


def scaling() -> Study:
    """Equal errors: 23.60 % at 256, 23.74 % at 8192 (from memory)."""
    return tuple(map(_recipe, (256, 512, 1024, 2048, 4096, 8192)))
