"""Normalisations: over the batch, over groups of its images, frozen, over channels, and none."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from resnet_jax.errors import UserError
from resnet_jax.models import moments
from resnet_jax.models.convolution import Gradients, form_of

Activation = Float[Array, "n h w c"]


class BatchNorm(nnx.Module):
    """Batch normalisation (Ioffe and Szegedy 2015), statistics and arithmetic in float32. Flax's own has no groups of images.

    Args:
      features: channels.
      momentum: ``running = momentum running + (1 - momentum) batch``; 0.9 is torch's 0.1.
      epsilon: added to the variance; 1e-5 as in fb.resnet.torch.
      group_size: statistics are taken over so many neighbouring images of the batch, whatever devices they lie on; 0: over all of
        it. He et al. saw 32 images (ImageNet, 8 GPUs) or 64 (CIFAR-10, 2 GPUs). The running statistics are averages over the groups.
      gradients: of training: JAX's own (plain), or written out (explicit, auto on CPU and GPU), see
        ``resnet_jax.models.moments``.
      rngs: unused; every layer is made alike.

    The running variance averages the biased variance.
    """

    def __init__(
        self,
        features: int,
        *,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        group_size: int = 0,
        gradients: Gradients = "auto",
        rngs: nnx.Rngs,
    ):
        if group_size < 0:
            raise UserError(f"BatchNorm(group_size={group_size}): give the number of images of a group, or 0 for the whole batch")
        self.momentum, self.epsilon, self.group_size = momentum, epsilon, group_size
        self.gradients: Gradients = gradients
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.mean = nnx.BatchStat(jnp.zeros(features))
        self.var = nnx.BatchStat(jnp.ones(features))

    def __call__(self, x: Activation, *, train: bool, rectify: bool = False) -> Activation:
        """``rectify``: no less than zero, which is the work of the ReLU that follows."""
        scale, bias = self.scale[...], self.bias[...]
        if not train:
            return moments.affine(x, self.mean[...], self.var[...], scale, bias, self.epsilon, rectify)
        images = len(x)
        group = self.group_size or images
        if images % group:
            raise UserError(
                f"a batch of {images} images does not split into BatchNorm groups of {self.group_size}: use a multiple of {self.group_size}"
            )
        grouped = x if group == images else x.reshape(images // group, group, *x.shape[1:])
        normalise = moments.explicit if form_of(self.gradients, moments.WRITTEN_FOR) == "explicit" else moments.plain
        y, mean, var = normalise(grouped, scale, bias, self.epsilon, rectify)
        for running, batch in ((self.mean, mean), (self.var, var)):
            average = batch if group == images else batch.mean(0)
            running[...] = _moved(running[...], average, self.momentum)
        return y.reshape(x.shape)


class FrozenBatchNorm(nnx.Module):
    """Batch normalisation that nothing changes: running statistics and affine constants are data, in training as well.

    For trunks whose batches are too small to normalise over (He et al. 2015, Appendix A). Its ``scale`` and ``bias`` are no
    parameters, so that neither gradients nor weight decay reach them; ``freeze`` moves a trained network's there.
    """

    def __init__(self, features: int, *, epsilon: float = 1e-5, rngs: nnx.Rngs):
        self.epsilon = epsilon
        self.scale = nnx.BatchStat(jnp.ones(features))
        self.bias = nnx.BatchStat(jnp.zeros(features))
        self.mean = nnx.BatchStat(jnp.zeros(features))
        self.var = nnx.BatchStat(jnp.ones(features))

    def __call__(self, x: Activation) -> Activation:
        return moments.affine(x, self.mean[...], self.var[...], self.scale[...], self.bias[...], self.epsilon)


class GroupNorm(nnx.GroupNorm):
    """Normalisation over groups of channels of one image (Wu and He 2018, arXiv 1803.08494); nothing depends on the batch.

    Raises:
      UserError: where ``num_groups`` does not divide the features: the CIFAR networks begin at 16, so use 8 or 16 there.
    """

    def __init__(self, features: int, *, num_groups: int = 32, epsilon: float = 1e-5, rngs: nnx.Rngs):
        if features % num_groups:
            raise UserError(f"GroupNorm(num_groups={num_groups}) does not divide {features} features: use a divisor of the narrowest layer")
        super().__init__(features, num_groups=num_groups, epsilon=epsilon, rngs=rngs)

    def __call__(self, x: Activation) -> Activation:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().__call__(x).astype(x.dtype)


class NoNorm(nnx.Module):
    """No normalisation: a bias for each channel, as convolutions have where none follows. SkipInit (De and Smith 2020), Section 2."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        self.bias = nnx.Param(jnp.zeros(features))

    def __call__(self, x: Activation) -> Activation:
        return x + self.bias[...].astype(x.dtype)


class Nothing(nnx.Module):
    """What stands where a normalisation would be one too many: a projection of an input that is normalised already."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        pass

    def __call__(self, x: Activation) -> Activation:
        return x


def _moved(running: Array, average: Array, momentum: float) -> Array:
    # Without momentum nothing of what was there is read.
    return momentum * running + (1 - momentum) * average if momentum else average


def set_momentum_aside(model: nnx.Module) -> dict[tuple[Any, ...], float]:
    """Lets every BatchNorm of a network forget, so that its statistics become those of the batch alone; returns what was taken, for
    ``moved``. One that a network passes through several times keeps its last batch.
    """
    taken = {path: norm.momentum for path, norm in nnx.iter_modules(model) if isinstance(norm, BatchNorm)}
    for _, norm in nnx.iter_modules(model):
        if isinstance(norm, BatchNorm):
            norm.momentum = 0.0
    return taken


def moved(momenta: dict[tuple[Any, ...], float], before: dict[Any, Any], batch: dict[Any, Any]) -> dict[Any, Any]:
    """Running statistics of a network after a batch.

    Args:
      momenta: by module, of ``set_momentum_aside``.
      before, batch: statistics as nested dictionaries, those of the network and those of the batch.
    """
    flat_before, flat = nnx.traversals.flatten_mapping(before), nnx.traversals.flatten_mapping(batch)
    after = {path: _moved(flat_before[path], value, momenta.get(path[:-1], 0.0)) for path, value in flat.items()}
    return nnx.traversals.unflatten_mapping(after)


def freeze(params: dict[Any, Any], batch_stats: dict[Any, Any]) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """Moves ``scale`` and ``bias`` of every BatchNorm from the parameters to the statistics: variables of the same network built
    with ``norm=FrozenBatchNorm``.
    """
    if "mean" in batch_stats and "var" in batch_stats:
        return {}, batch_stats | {name: params[name] for name in ("scale", "bias")}
    trained, frozen = {}, dict(batch_stats)
    for name, value in params.items():
        if name in batch_stats:
            inner, frozen[name] = freeze(value, batch_stats[name])
            if inner:
                trained[name] = inner
        else:
            trained[name] = value
    return trained, frozen


def thaw(params: dict[Any, Any], batch_stats: dict[Any, Any]) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """Undoes ``freeze``: variables of the same network built with ``norm=BatchNorm``."""
    affine = {name: batch_stats[name] for name in ("scale", "bias") if name in batch_stats and "mean" in batch_stats}
    if affine:
        return params | affine, {name: value for name, value in batch_stats.items() if name not in affine}
    inner = {name: thaw(params.get(name, {}), value) for name, value in batch_stats.items() if isinstance(value, dict)}
    trained, kept = ({name: both[part] for name, both in inner.items()} for part in (0, 1))
    return params | trained, batch_stats | kept
