"""Load a safetensors file strictly into torchvision's network and print its logits of `drawn.images(128)` as JSON.

By hand, in an environment with torch, torchvision and safetensors: ``python tests/check_torch_loads.py resnet50 FILE.safetensors``.
"""

import json
import sys

import torch
import torchvision
from safetensors.torch import load_file

from drawn import images


def logits(name: str, file: str) -> list[list[float]]:
    tensors = load_file(file)
    model = torchvision.models.get_model(name, weights=None, num_classes=tensors["fc.weight"].shape[0])
    # Not strict for num_batches_tracked: without torch's metadata they may be absent.
    model.load_state_dict(tensors, strict=True)
    with torch.inference_mode():
        return model.eval()(torch.from_numpy(images(128))).tolist()


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(logits(*sys.argv[1:])))
