"""The devices that a plan can be made for, with what their makers publish of them."""

import math
import re
from dataclasses import dataclass

from resnet_jax.errors import UserError, nearest

_TRAY = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")


@dataclass(frozen=True)
class Device:
    """One chip, as published. Rates are peaks: nothing reaches them."""

    kind: str
    """Maker's name."""
    platform: str
    """jax's name of what drives it: tpu or gpu."""
    memory: int
    """Bytes, all of it."""
    usable: int
    """Bytes that a program can have by default."""
    bandwidth: float
    """Of the memory, bytes a second."""
    matrix_rates: tuple[tuple[str, float], ...]
    """FLOPs a second of matrix products, by dtype. float32 is at jax's default precision, which rounds factors: bfloat16 on TPU, TF32 on
    GPU."""
    link: float
    """Bytes a second that it can send to its neighbours, over all links together, one way."""
    shapes: tuple[str, ...]
    """Of several of them."""
    source: str

    def matrix_rate(self, dtype: str) -> float:
        """FLOPs a second of matrix products in a dtype."""
        return dict(self.matrix_rates)[dtype]


def _tpu(
    kind: str, memory: int, usable: float, bandwidth: float, rate: float, bidirectional: float, shapes: tuple[str, ...], source: str
) -> Device:
    # Makers' GB of memory are binary ones, of rates decimal ones.
    rates = (("bfloat16", rate * 1e12), ("float32", rate * 1e12))
    return Device(kind, "tpu", memory * 2**30, int(usable * 2**30), bandwidth * 1e9, rates, bidirectional / 2 * 1e9, shapes, source)


def _gpu(kind: str, memory: int, bandwidth: float, bf16: float, tf32: float, bidirectional: float, source: str) -> Device:
    rates = (("bfloat16", bf16 * 1e12), ("float32", tf32 * 1e12))
    # jax takes three quarters of a GPU's memory, unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
    usable = memory * 3 // 4
    return Device(kind, "gpu", memory, usable, bandwidth * 1e9, rates, bidirectional / 2 * 1e9, ("1", "2", "4", "8"), source)


# Rates of GPUs are dense ones; their data sheets print twice as much, "with sparsity". Memory of a GPU is what its driver reports; usable
# memory of a TPU what libtpu 0.0.50.1 says where a program needs more ("exceeds available HBM").
_CLOUD = "Cloud TPU documentation, system architecture of"
DEVICES = {
    "tpu:v5e": _tpu(
        *("TPU v5e", 16, 15.75, 819, 197, 400, _TRAY),
        f"{_CLOUD} v5e: 197 TFLOPS bf16, 16 GB, 819 GB/s, ICI 400 GB/s both ways together",
    ),
    "tpu:v6e": _tpu(
        *("TPU v6e", 32, 31.24, 1600, 918, 800, _TRAY),
        f"{_CLOUD} v6e: 918 TFLOPS bf16, 32 GB, 1600 GB/s, ICI 3200 Gbps one way",
    ),
    "tpu:v5p": _tpu(
        *("TPU v5p", 95, 95.0, 2765, 459, 1200, _CUBES),
        f"{_CLOUD} v5p: 459 TFLOPS bf16, 95 GB, 2765 GB/s, ICI 1200 GB/s both ways together",
    ),
    "gpu:h100": _gpu(
        "NVIDIA H100 SXM 80 GB",
        84_942_979_072,
        3350,
        989.4,
        494.7,
        900,
        "NVIDIA H100 data sheet, SXM5: 80 GB, 3.35 TB/s, 989.4 TFLOPS bf16 and 494.7 TF32 (dense), NVLink 900 GB/s both ways",
    ),
    "gpu:a100": _gpu(
        "NVIDIA A100 SXM 80 GB",
        84_974_239_744,
        2039,
        312,
        156,
        600,
        "NVIDIA A100 data sheet, SXM4 80 GB: 2,039 GB/s, 312 TFLOPS bf16 and 156 TF32 (dense), NVLink 600 GB/s both ways",
    ),
}


@dataclass(frozen=True)
class Target:
    """Some chips of a kind, linked."""

    name: str
    """As ``parse`` reads it."""
    device: Device
    shape: str
    """4x4, 8x16x16; of GPUs their number, in one host."""

    @property
    def chips(self) -> int:
        return math.prod(int(side) for side in self.shape.split("x"))


def parse(text: str) -> Target:
    """Reads ``tpu:v5e:4x4``, ``gpu:h100`` or ``gpu:h100:8``.

    Raises:
      UserError: for anything else, with what is near.
    """
    # GPUs alone need no shape.
    match = re.fullmatch(r"(\w+:\w+?)(?::([\dx]+))?", text)
    name = match[1] if match else text
    if name not in DEVICES:
        raise UserError(f"--target is {text!r}{nearest(name, DEVICES)}; after a TPU comes its shape, as tpu:v5e:4x4")
    device = DEVICES[name]
    shape = (match and match[2]) or ("1" if device.platform == "gpu" else "")
    if shape not in device.shapes:
        raise UserError(
            f"--target is {text!r}: a {device.kind} comes in the shapes {', '.join(f'{name}:{each}' for each in device.shapes)}"
        )
    return Target(text, device, shape)
