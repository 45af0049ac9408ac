"""Weights on the Hugging Face Hub, where the extra ``hub`` and a network are there."""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet_jax.errors import UserError

WEIGHTS, CONFIG = "model.safetensors", "config.json"


@dataclass(frozen=True)
class Fetched:
    """A file of weights, and what its repository says of how images are shown to it: fields of ``View``."""

    path: Path
    view: dict[str, Any]


def is_identifier(source: Path | str) -> bool:
    """Whether a source is the text ``OWNER/NAME``, or ``hf://OWNER/NAME``, and no file or folder."""
    if isinstance(source, Path):
        return False
    if source.startswith("hf://"):
        return True
    return re.fullmatch(r"[\w-]+/[\w.-]+", source) is not None and Path(source).suffix not in _SUFFIXES and not Path(source).exists()


# What a path that does not exist ends with, rather than a repository.
_SUFFIXES = (".safetensors", ".npz", ".pth", ".th", ".pt", ".ckpt", ".pkl", ".tar", ".bin", ".h5")


def fetch(source: str) -> Fetched:
    """Downloads the weights of a repository into the Hub's own cache, or finds them there.

    Raises:
      UserError: without the extra, a network, or such weights.
    """
    identifier = re.sub(r"^hf:/+", "", source)
    try:
        import huggingface_hub  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            f"there is no file or folder {source}; to fetch it from the Hugging Face Hub takes an extra: pip install 'resnet-jax-lab[hub]'"
        ) from None
    try:
        weights = huggingface_hub.hf_hub_download(identifier, WEIGHTS)
    except Exception as error:
        # The Hub's client raises dozens of its own and of its network libraries' types.
        raise UserError(
            f"there is no file or folder {source}, and the Hugging Face Hub did not give {identifier}/{WEIGHTS} "
            f"({type(error).__name__}: {error!s:.200})"
        ) from error
    try:
        config = json.loads(Path(huggingface_hub.hf_hub_download(identifier, CONFIG)).read_text())
    except Exception:
        # Most repositories of weights have none.
        config = {}
    return Fetched(Path(weights), _view(config))


def _view(config: Any) -> dict[str, Any]:
    """timm's ``pretrained_cfg``: mean, std, input_size, crop_pct, interpolation; whether they make sense is checked with the card."""
    given = config.get("pretrained_cfg", config) if isinstance(config, dict) else {}
    if not isinstance(given, dict):
        return {}
    found: dict[str, Any] = {}
    if isinstance(given.get("mean"), list) and isinstance(given.get("std"), list):
        found |= {"mean": given["mean"], "deviation": given["std"]}
    size, share = given.get("input_size"), given.get("crop_pct", 0.875)
    if isinstance(size, list) and len(size) == 3 and type(size[2]) is int and type(share) in (int, float) and 0 < share <= 1:
        # timm resizes the shorter side to floor(size / crop_pct).
        found |= {"crop": size[2], "resize": math.floor(size[2] / share)}
    if given.get("interpolation") in ("bilinear", "bicubic"):
        found["interpolation"] = given["interpolation"]
    return found
