"""Normalization layers: over the batch or groups of its images, frozen, over channels, and none."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from resnet_jax import kernels as kernels_lib
from resnet_jax.errors import UserError
from resnet_jax.kernels import Kernels, batch_norm
from resnet_jax.models.layers import Activation

Variables = dict[Any, Any]


class BatchNorm(nnx.Module):
    """Batch normalization (Ioffe and Szegedy 2015) with statistics and arithmetic in float32.

    Args:
      momentum: ``running = momentum running + (1 - momentum) batch``; 0.9 is torch's 0.1.
      epsilon: added to the variance; 1e-5 as in fb.resnet.torch.
      group_size: neighboring images that share statistics, on whatever devices; 0: the whole batch. He et al. had
        32 (ImageNet, 8 GPUs) and 64 (CIFAR-10, 2 GPUs). Running statistics average over groups and biased variances.
      kernels: autodiff or the custom VJP in training, see ``resnet_jax.kernels``.
    """

    def __init__(
        self,
        features: int,
        *,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        group_size: int = 0,
        kernels: Kernels = "auto",
        rngs: nnx.Rngs,
    ):
        if group_size < 0:
            raise UserError(
                f"BatchNorm(group_size={group_size}): give the number of images of a group, or 0 for the whole batch."
            )
        self.momentum, self.epsilon, self.group_size = momentum, epsilon, group_size
        self.kernels: Kernels = kernels
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.mean = nnx.BatchStat(jnp.zeros(features))
        self.var = nnx.BatchStat(jnp.ones(features))

    def __call__(self, x: Activation, *, train: bool, rectify: bool = False) -> Activation:
        """Normalizes x; ``rectify`` applies the ReLU that follows."""
        scale, bias = self.scale[...], self.bias[...]
        if not train:
            return batch_norm.affine(
                x, self.mean[...], self.var[...], scale, bias, self.epsilon, rectify
            )
        images, group = len(x), self.group_size or len(x)
        if images % group:
            raise UserError(
                f"A batch of {images} images does not split into BatchNorm groups of {group}: use a multiple of {group}."
            )
        grouped = x if group == images else x.reshape(images // group, group, *x.shape[1:])
        normalize = (
            batch_norm.autodiff
            if kernels_lib.resolve(self.kernels) == "plain"
            else batch_norm.custom
        )
        y, mean, var = normalize(grouped, scale, bias, self.epsilon, rectify)
        for running, batch in ((self.mean, mean), (self.var, var)):
            average = batch if group == images else batch.mean(0)
            running[...] = _moved(running[...], average, self.momentum)
        return y.reshape(x.shape)


class FrozenBatchNorm(nnx.Module):
    """Batch normalization with constant statistics, scale and bias (He et al. 2015, Appendix A).

    ``scale`` and ``bias`` are no parameters, so neither gradients nor weight decay reach them.
    """

    def __init__(self, features: int, *, epsilon: float = 1e-5, rngs: nnx.Rngs):
        self.epsilon = epsilon
        self.scale = nnx.BatchStat(jnp.ones(features))
        self.bias = nnx.BatchStat(jnp.zeros(features))
        self.mean = nnx.BatchStat(jnp.zeros(features))
        self.var = nnx.BatchStat(jnp.ones(features))

    def __call__(self, x: Activation) -> Activation:
        return batch_norm.affine(
            x, self.mean[...], self.var[...], self.scale[...], self.bias[...], self.epsilon
        )


class GroupNorm(nnx.GroupNorm):
    """Normalization over groups of channels of one image (Wu and He 2018, arXiv 1803.08494)."""

    def __init__(
        self, features: int, *, num_groups: int = 32, epsilon: float = 1e-5, rngs: nnx.Rngs
    ):
        if features % num_groups:
            raise UserError(
                f"GroupNorm(num_groups={num_groups}) does not divide {features} features: use a divisor of every width."
            )
        super().__init__(features, num_groups=num_groups, epsilon=epsilon, rngs=rngs)

    def __call__(self, x: Activation) -> Activation:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().__call__(x).astype(x.dtype)


class NoNorm(nnx.Module):
    """A bias per channel and no normalization. SkipInit (De and Smith 2020, arXiv 2002.10444), Section 2."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        self.bias = nnx.Param(jnp.zeros(features))

    def __call__(self, x: Activation) -> Activation:
        return x + self.bias[...].astype(x.dtype)


class Nothing(nnx.Module):
    """Identity, for a projection of an input that is normalized already."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        pass

    def __call__(self, x: Activation) -> Activation:
        return x


def _moved(running: Array, average: Array, momentum: float) -> Array:
    # Without momentum the running statistics are not read.
    return momentum * running + (1 - momentum) * average if momentum else average


def set_momentum_aside(model: nnx.Module) -> dict[tuple[Any, ...], float]:
    """Sets every BatchNorm's momentum to 0; returns the previous values for ``moved``."""
    norms = {path: norm for path, norm in nnx.iter_modules(model) if isinstance(norm, BatchNorm)}
    momenta = {path: norm.momentum for path, norm in norms.items()}
    for norm in norms.values():
        norm.momentum = 0.0
    return momenta


def moved(momenta: dict[tuple[Any, ...], float], before: Variables, batch: Variables) -> Variables:
    """Returns running statistics from those before a batch and those of the batch alone."""
    flat_before, flat = (
        nnx.traversals.flatten_mapping(before),
        nnx.traversals.flatten_mapping(batch),
    )
    after = {
        path: _moved(flat_before[path], value, momenta.get(path[:-1], 0.0))
        for path, value in flat.items()
    }
    return nnx.traversals.unflatten_mapping(after)


def freeze(params: Variables, batch_stats: Variables) -> tuple[Variables, Variables]:
    """Converts variables for ``norm=FrozenBatchNorm``: moves scales and biases from the parameters to the statistics."""
    if "mean" in batch_stats and "var" in batch_stats:
        return {}, batch_stats | {name: params[name] for name in ("scale", "bias")}
    trained, frozen = {}, dict(batch_stats)
    for name, value in params.items():
        if name not in batch_stats:
            trained[name] = value
            continue
        inner, frozen[name] = freeze(value, batch_stats[name])
        if inner:
            trained[name] = inner
    return trained, frozen


def thaw(params: Variables, batch_stats: Variables) -> tuple[Variables, Variables]:
    """Undoes ``freeze``."""
    affine = {
        name: batch_stats[name]
        for name in ("scale", "bias")
        if name in batch_stats and "mean" in batch_stats
    }
    if affine:
        return params | affine, {
            name: value for name, value in batch_stats.items() if name not in affine
        }
    inner = {
        name: thaw(params.get(name, {}), value)
        for name, value in batch_stats.items()
        if isinstance(value, dict)
    }
    trained, kept = ({name: both[part] for name, both in inner.items()} for part in (0, 1))
    return params | trained, batch_stats | kept
