"""Residual networks in JAX: train them, ablate what makes them work, import their parts."""
