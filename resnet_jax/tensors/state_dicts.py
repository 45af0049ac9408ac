"""Which of the values in a training checkpoint are the network's weights."""

from pathlib import Path
from typing import Any

from resnet_jax.errors import UserError
from resnet_jax.tensors.stored import Note, shown
from resnet_jax.tensors.torch_pickle import Global
from resnet_jax.tensors.torch_views import Storage, Tensor

# Names under which training scripts keep the weights, the most usual first.
_NAMES = ("state_dict", "model", "model_state", "net", "module")


def find_state_dict(saved: Any, path: Path) -> tuple[dict[str, Tensor], dict[str, Note | Tensor]]:
    """Finds the weights in what was saved.

    Args:
      saved: what ``torch_pickle.load`` returned: a state dict, or a dictionary with one under a usual name.
      path: the file's name, for messages.

    Returns:
      The tensors by name, and what lies beside them: scalars, one-element tensors, and a sentence for each other dictionary of tensors.

    Raises:
      UserError: where there are no tensors, and where dictionaries lie among them.
    """
    if not isinstance(saved, dict):
        raise UserError(f"{path} holds {_kind(saved)}, not a dictionary of weights; save model.state_dict()")
    name = next((name for name in _NAMES if _holds_tensors(saved.get(name))), None)
    if name is None and not _holds_tensors(saved):
        keys = ", ".join(shown(str(key)) for key in list(saved)[:20]) or "nothing"
        raise UserError(f"{path}: no weights are found; it holds {keys}. Looked for tensors at the top and under {', '.join(_NAMES)}")
    if name is None:
        return _tensors(saved, path), {}
    notes: dict[str, Note | Tensor] = {}
    for key, value in saved.items():
        if not isinstance(key, str) or key == name:
            continue
        number = isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)
        if number or isinstance(value, str) or (isinstance(value, Tensor) and all(size == 1 for size in value.shape)):
            notes[key] = value
        elif _holds_tensors(value):
            notes[key] = f"another dictionary of tensors, not read: the weights are those of {name}"
    return _tensors(saved[name], path), notes


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(entry, Tensor) for entry in value.values())


def _tensors(state_dict: dict[Any, Any], path: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, value in state_dict.items():
        if isinstance(value, Tensor) and isinstance(name, str):
            tensors[name] = value
        elif isinstance(value, (Tensor, dict, list, tuple, Storage)):
            raise UserError(f"{path}: {shown(str(name))} among the weights is {_kind(value)}; save a flat dictionary of tensors by name")
    return tensors


def _kind(value: Any) -> str:
    names = {dict: "a dictionary", list: "a list", tuple: "a tuple", Tensor: "a tensor", Storage: "a storage", str: "a string"}
    return value.name if isinstance(value, Global) else names.get(type(value), type(value).__name__)
