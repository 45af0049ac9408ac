"""Which stages of a network are strided and which are dilated instead, so that its last map is fine enough for dense prediction."""

from typing import Any

from resnet_jax.errors import UserError


def stage_strides(stages: int, output_stride: int, stem: Any, transition: Any) -> list[tuple[int, int, int]]:
    """Returns, for every stage, the stride of its first unit, the dilation up to the convolution that has it, and the dilation behind.

    Where a stage's stride would pass ``output_stride``, what comes after it is dilated instead, so that the strided network's outputs are
    among the dilated one's (Chen et al. 2017, arXiv 1706.05587, Section 3.2; torchvision's ``replace_stride_with_dilation``).

    Args:
      stages: number of stages; each but the first halves the map.
      output_stride: pixels of the image to one of the last map; 0: no dilation.
      stem: its ``stride`` is where counting begins.
      transition: its ``stride`` is what the first unit need not have.

    Raises:
      UserError: for an output stride that the network cannot have.
    """
    between: int = transition.stride
    if not output_stride:
        return [(1, 1, 1)] + [(2 // between, 1, 1)] * (stages - 1)
    enters = getattr(stem, "stride", None)
    if enters is None or between != 1:
        what = f"the stem {type(stem).__name__} does not say its stride" if enters is None else f"{transition.__name__} cannot be dilated"
        raise UserError(f"output_stride={output_stride} cannot be had: {what}")
    possible = [enters * 2**i for i in range(stages)]
    if output_stride not in possible:
        raise UserError(
            f"output_stride={output_stride} cannot be had: with {stages} stages behind a stem of stride {enters} it is one of {possible}"
        )
    found, reached, dilation = [], enters, 1
    for index in range(stages):
        wanted, before = (2 if index else 1), dilation
        if reached * wanted > output_stride:
            dilation *= wanted
            wanted = 1
        reached *= wanted
        found.append((wanted, before, dilation))
    return found
