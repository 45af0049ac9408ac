"""Writes tests/golden/torch/tiny*: needs torch, which nothing else here does. Run it by hand: python tests/tensors/write_torch_files.py

The numbers come from numpy's generator, so that the tests draw them again.
"""

from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parents[1] / "golden" / "torch"


def main() -> None:
    drawn = np.random.default_rng(2016)
    full = torch.from_numpy(drawn.standard_normal((4, 6)).astype(np.float32))
    half = torch.from_numpy(drawn.standard_normal(5).astype(np.float32))
    weight = torch.from_numpy(drawn.standard_normal((2, 3)).astype(np.float32))
    state_dict = {
        "full": full,
        "transposed": full.t(),
        "sliced": full[1:, ::2],
        "half": half.half(),
        "bfloat": half.bfloat16(),
        "count": torch.tensor(7),
        "mask": torch.tensor([True, False, True]),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(weight),
    }
    checkpoint = {
        "state_dict": state_dict,
        "epoch": 90,
        "arch": "resnet",
        "best_prec1": torch.tensor(91.5),
        "lr": 0.1,
        "distributed": False,
        "optimizer": {"state": {0: {"momentum_buffer": weight}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "params": [0]}]},
        "state_dict_ema": {"full": full},
    }
    torch.save(checkpoint, GOLDEN / "tiny.pth")
    torch.save(checkpoint, GOLDEN / "tiny_legacy.pth.tar", _use_new_zipfile_serialization=False)


if __name__ == "__main__":
    main()
