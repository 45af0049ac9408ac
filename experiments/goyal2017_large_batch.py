"""Large batches: Goyal et al. 2017 (arXiv 1706.02677), ResNet-50 on ImageNet.

Command:   resnet-jax study experiments/goyal2017_large_batch.py:scaling --seeds 1 --workdir runs/goyal
Recipe:    batch kn on k GPUs, n = 32; 0.1 kn / 256, linear warm-up from 0.1 over 5 epochs, divided by 10 at 30, 60, 80
           of 90 epochs; Nesterov momentum 0.9, weight decay 1e-4 but on BatchNorm; last scale of branches starts at 0
           (Section 5.1); BatchNorm over 32 images; RandomResizedCrop, flip.
Deviation: no weight decay on the classifier's bias; no color augmentation; bilinear crops (not stated).
Hardware:  paper: up to 256 P100.
"""

from dataclasses import replace

from resnet_jax.data.augment_host import RandomResizedCrop
from resnet_jax.models import architecture, component
from resnet_jax.models.blocks import BottleneckV15
from resnet_jax.models.norms import BatchNorm
from resnet_jax.training.config import (
    Checkpointing,
    Data,
    Evaluation,
    Experiment,
    Optimizer,
    Schedule,
)


def _experiment(batch_size: int) -> Experiment:
    epoch = -(-1_281_167 // batch_size)
    branch = component(BottleneckV15, zero_scale=True)
    return Experiment(
        name=f"batch-{batch_size}",
        model=replace(
            architecture("resnet50_v15"), branch=branch, norm=component(BatchNorm, group_size=32)
        ),
        data=Data(
            name="imagenet2012",
            test_split="validation",
            normalization="imagenet",
            pad=0,
            crop=RandomResizedCrop,
        ),
        optimizer=Optimizer(momentum=0.9, nesterov=True, weight_decay=1e-4, decay="kernels"),
        schedule=Schedule(
            learning_rate=0.1 * batch_size / 256,
            decay_steps=(30 * epoch, 60 * epoch, 80 * epoch),
            warmup_learning_rate=0.1,
            warmup_steps=5 * epoch if batch_size > 256 else 0,
            linear_warmup=batch_size > 256,
        ),
        steps=90 * epoch,
        batch_size=batch_size,
        evaluation=Evaluation(every=epoch, batch_size=256, protocol="256/224"),
        checkpointing=Checkpointing(every=epoch),
    )


def scaling() -> tuple[Experiment, ...]:
    """Equal errors: 23.60 % at 256, 23.74 % at 8192 (from memory)."""
    return tuple(_experiment(256 * 2**power) for power in range(6))
