"""Normalization layers and their running statistics."""

import functools
from collections.abc import Set
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.traversals import flatten_mapping, unflatten_mapping
from jax.sharding import AxisType, auto_axes
from jax.sharding import PartitionSpec as P

from resnet_jax import kernels
from resnet_jax.errors import Fraction, UserError, check, require
from resnet_jax.kernels.typing import Array
from resnet_jax.models.layers import Activation, Bias

Variables = dict[str, Any]
Momenta = dict[Any, float]


class BatchNorm(nnx.Module):
    """Batch normalization (Ioffe and Szegedy 2015) with statistics and arithmetic in float32.

    Args:
      momentum: ``running = momentum running + (1 - momentum) batch``; 0.9 is torch's 0.1.
      epsilon: added to the variance; 1e-5 as in fb.resnet.torch.
      group_size: neighboring images that share statistics, on whatever devices; 0: the batch. He
        et al. had 32 (ImageNet) and 64 (CIFAR-10). Running variances are means of biased ones.
      axis_name: of ``jax.shard_map``, ``pmap`` or ``vmap``, whose batches share statistics.
    """

    def __init__(
        self,
        features: int,
        *,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        group_size: int = 0,
        axis_name: str | tuple[str, ...] | None = None,
        rngs: nnx.Rngs,
    ):
        self.momentum, self.epsilon, self.group_size = momentum, epsilon, group_size
        self.axis_name, self.use_running_average = axis_name, True
        check("BatchNorm.momentum", Fraction, momentum)
        check("BatchNorm.epsilon", float, epsilon)
        check("BatchNorm.group_size", int, group_size)
        require(not group_size or not axis_name, "BatchNorm takes group_size or axis_name.")
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.mean = nnx.BatchStat(jnp.zeros(features))
        self.var = nnx.BatchStat(jnp.ones(features))

    def __call__(
        self, x: Activation, *, train: bool | None = None, rectify: bool = False
    ) -> Activation:
        """Normalizes x; ``rectify`` applies the ReLU that follows."""
        weights = self.scale[...], self.bias[...], self.epsilon, rectify
        if self.use_running_average if train is None else not train:
            return kernels.affine(x, self.mean[...], self.var[...], *weights)
        images, size = x.shape[0], self.group_size
        if size and images % size:
            batch = f"a batch of {images} images"
            raise UserError(f"BatchNorm(group_size={size}) does not divide {batch}.")
        grouped = size not in (0, images)
        normalize = functools.partial(kernels.normalize, axis_name=self.axis_name)
        if grouped:
            normalize = functools.partial(_normalize_groups, size)
        try:
            y, mean, var = normalize(x, *weights)
        except NameError as error:
            problem = f"BatchNorm(axis_name={self.axis_name!r}): no such axis is mapped"
            raise UserError(f"{problem}; use jax.shard_map, jax.pmap or jax.vmap.") from error
        for running, average in ((self.mean, mean), (self.var, var)):
            running[...] = _moved(running[...], average, self.momentum)
        return y


def _normalize_groups(
    size: int, x: Array, scale: Array, bias: Array, epsilon: float, rectify: bool
) -> tuple[Array, Array, Array]:
    def normalize(x: Array, scale: Array, bias: Array) -> tuple[Array, Array, Array]:
        groups = x.reshape(-1, size, *x.shape[1:])
        y, mean, var = kernels.normalize(groups, scale, bias, epsilon, rectify)
        return y.reshape(x.shape), mean.mean(0), var.mean(0)

    sharding = jax.typeof(x).sharding
    if AxisType.Explicit in sharding.mesh.axis_types:
        # A group may extend over devices, which no explicit sharding of the groups expresses.
        replicated = sharding.update(spec=P())
        shardings = sharding, replicated, replicated
        return auto_axes(normalize, out_sharding=shardings)(x, scale, bias)  # pyright: ignore
    return normalize(x, scale, bias)


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
        weights = self.scale[...], self.bias[...], self.epsilon
        return kernels.affine(x, self.mean[...], self.var[...], *weights)


class GroupNorm(nnx.GroupNorm):
    """Normalization over groups of channels of one image (Wu and He 2018, arXiv 1803.08494)."""

    def __init__(
        self, features: int, *, num_groups: int = 32, epsilon: float = 1e-5, rngs: nnx.Rngs
    ):
        if num_groups < 1 or features % num_groups:
            groups = f"GroupNorm(num_groups={num_groups})"
            raise UserError(f"{groups} does not divide {features} features.")
        super().__init__(features, num_groups=num_groups, epsilon=epsilon, rngs=rngs)

    def __call__(self, x: Activation, *, mask: Array | None = None) -> Activation:
        return super().__call__(x, mask=mask).astype(x.dtype)


class NoNorm(Bias):
    """Only a bias per channel. SkipInit (De and Smith 2020, arXiv 2002.10444), Section 2."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        self.bias = nnx.Param(jnp.zeros(features))


class Nothing(nnx.Module):
    """Identity, for a projection of an input that is normalized already."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        pass

    def __call__(self, x: Activation) -> Activation:
        return x


def _moved(running: Array, average: Array, momentum: float) -> Array:
    return momentum * running + (1 - momentum) * average if momentum else average


def set_momentum_aside(model: nnx.Module) -> Momenta:
    """Sets every BatchNorm's momentum to 0; returns the previous values for ``moved``."""
    norms = {path: norm for path, norm in nnx.iter_modules(model) if isinstance(norm, BatchNorm)}
    momenta = {path: norm.momentum for path, norm in norms.items()}
    for norm in norms.values():
        norm.momentum = 0.0
    return momenta


def moved(momenta: Momenta, before: Variables, batch: Variables) -> Variables:
    """Returns running statistics from those before a batch and those of the batch alone."""
    running, averages = flatten_mapping(before), flatten_mapping(batch)
    return unflatten_mapping(
        {p: _moved(running[p], a, momenta.get(p[:-1], 0.0)) for p, a in averages.items()}
    )


def freeze(params: Variables, batch_stats: Variables) -> tuple[Variables, Variables]:
    """Converts variables for ``norm=FrozenBatchNorm``: scales and biases become statistics."""
    variables, stats = flatten_mapping(params), flatten_mapping(batch_stats)
    frozen = {path for path in variables if (*path[:-1], "mean") in stats}
    return _split(variables | stats, stats.keys() | frozen)


def thaw(params: Variables, batch_stats: Variables) -> tuple[Variables, Variables]:
    """Undoes ``freeze``."""
    variables, stats = flatten_mapping(params), flatten_mapping(batch_stats)
    affine = {p for p in stats if p[-1] in ("scale", "bias") and (*p[:-1], "mean") in stats}
    return _split(variables | stats, stats.keys() - affine)


def _split(variables: dict[Any, Any], stats: Set[Any]) -> tuple[Variables, Variables]:
    trained = {path: value for path, value in variables.items() if path not in stats}
    kept = {path: value for path, value in variables.items() if path in stats}
    return unflatten_mapping(trained), unflatten_mapping(kept)
