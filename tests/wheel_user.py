"""A program of a user: runs with the wheel alone, and mypy and pyright check its types."""

# ruff: noqa: E402
import functools
import sys
import time
from typing import assert_type

began = time.process_time()
import resnet_jax

assert time.process_time() - began < 0.1
assert not {"jax", "flax", "numpy"} & sys.modules.keys()
import jax
from flax import nnx
from resnet_jax.models import Architecture, ResNet

model = resnet_jax.create_model("cifar_resnet20", order="FullPreactivation", num_classes=7, rngs=nnx.Rngs(0))
norm = functools.partial(nnx.BatchNorm, momentum=0.9)
Architecture(stages=(1,), features=(8,), shortcut="A", order="Original", norm=norm)
assert_type(model, ResNet)
assert_type(resnet_jax.list_models("cifar_*"), list[str])
assert_type(model(jax.numpy.zeros((2, 32, 32, 3))), jax.Array)
