"""Foreign weights: names, layouts, inference of the network, reading and writing."""

from resnet_jax.weights.card import Card, View
from resnet_jax.weights.hub import list_pretrained
from resnet_jax.weights.loading import Pretrained, load_pretrained

__all__ = ["Card", "Pretrained", "View", "list_pretrained", "load_pretrained"]
