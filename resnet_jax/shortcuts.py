"""``resnet_jax.models.shortcuts``, where a reader looks for it first."""

from resnet_jax.models.shortcuts import (
    OPTIONS,
    Concatenation,
    DropoutShortcut,
    ExclusiveGating,
    LearnedScalar,
    NoShortcut,
    PooledProjection,
    PooledZeroPad,
    Projection,
    ProjectionEverywhere,
    Scaled,
    Shortcut,
    ShortcutOnlyGating,
    ZeroPad,
)

__all__ = [
    "OPTIONS",
    "Concatenation",
    "DropoutShortcut",
    "ExclusiveGating",
    "LearnedScalar",
    "NoShortcut",
    "PooledProjection",
    "PooledZeroPad",
    "Projection",
    "ProjectionEverywhere",
    "Scaled",
    "Shortcut",
    "ShortcutOnlyGating",
    "ZeroPad",
]
