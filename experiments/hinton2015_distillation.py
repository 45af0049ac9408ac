"""ResNet-8 taught by ResNet-20 on few images, on a laptop. Hinton et al. 2015, arXiv 1503.02531.

Command: resnet-jax weights import resnet20-12fca82f.th --to resnet20.safetensors;
    resnet-jax study hinton2015_distillation:cifar10 --seeds 3 --workdir runs/distillation
Recipe: he2015_cifar10.py's augmentation and SGD in 240 steps of 64 images (3 epochs): 0.05, divided
    by 10 at 1/2 and 3/4. Loss: 0.1 cross-entropy + 0.9 T^2 KL(teacher || student) at T = 4.
Teacher: akamaster's ResNet-20 (github.com/akamaster/pytorch_resnet_cifar10), 8.27 % test error,
    trained on all 50,000 images. It receives the student's augmented images.
Deviation: the first 5,000 training images and a short schedule; the paper has MNIST and speech.
Result: after 3 epochs the taught network is not better (results/2026-12-01-cpu-distillation.json).
Hardware: 2 CPU cores, 8 minutes of CPU time.
"""

from resnet_jax.models.catalog import variant
from resnet_jax.training.config import (
    Checkpointing,
    Data,
    Distillation,
    Evaluation,
    Experiment,
    Schedule,
)
from resnet_jax.training.recipes import Study


def _recipe(name: str, distillation: Distillation) -> Experiment:
    return Experiment(
        name=name,
        model=variant("cifar_resnet8"),
        data=Data(name="cifar10", normalization="channel", validation_examples=45_000),
        schedule=Schedule(learning_rate=0.05, decay_steps=(120, 180)),
        steps=240,
        batch_size=64,
        evaluation=Evaluation(every=240),
        checkpointing=Checkpointing(every=240),
        distillation=distillation,
    )


def alone() -> Experiment:
    """ResNet-8 on labels."""
    return _recipe("alone", Distillation())


def taught() -> Experiment:
    """ResNet-8 on labels and the teacher's soft labels."""
    return _recipe("taught", Distillation(teacher="resnet20.safetensors"))


def cifar10() -> Study:
    """ResNet-8 alone and taught."""
    return alone(), taught()
