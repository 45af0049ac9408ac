"""An experiment that lasts long enough to be interrupted in the middle."""

from resnet_jax.models import cifar_architecture
from resnet_jax.training.config import Checkpointing, Data, Evaluation, Experiment, Schedule


def long() -> Experiment:
    """Eight layers, some hundred steps, a line of metrics every twenty."""
    return Experiment(
        name="long",
        model=cifar_architecture(8, input_shape=(8, 8, 1), features=(4, 8, 8)),
        data=Data(name="digits", pad=1, flip=False),
        schedule=Schedule(learning_rate=0.05, decay_steps=(200, 300), warmup_steps=20),
        steps=400,
        batch_size=64,
        evaluation=Evaluation(every=20, batch_size=72),
        checkpointing=Checkpointing(every=20),
    )
