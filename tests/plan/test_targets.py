"""Targets: what is published, and what is refused."""

import pytest

from resnet_jax.errors import UserError
from resnet_jax.plan import targets


@pytest.mark.parametrize(
    ("text", "kind", "chips"),
    [
        ("tpu:v5e:16x16", "TPU v5e", 256),
        ("tpu:v6e:4x4", "TPU v6e", 16),
        ("tpu:v5p:8x16x16", "TPU v5p", 2048),
        ("gpu:h100", "NVIDIA H100 SXM 80 GB", 1),
        ("gpu:a100:8", "NVIDIA A100 SXM 80 GB", 8),
    ],
)
def test_a_target_names_chips_and_their_shape(text: str, kind: str, chips: int) -> None:
    target = targets.parse(text)
    assert (target.name, target.device.kind, target.chips) == (text, kind, chips)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gpu:h1000", "did you mean gpu:h100"),
        ("tpu:v5:4x4", "did you mean tpu:v5"),
        ("tpu:v5e", "comes in the shapes tpu:v5e:1x1"),
        ("tpu:v5e:3x3", "comes in the shapes tpu:v5e:1x1"),
        ("tpu:v5p:16x16", "comes in the shapes tpu:v5p:2x2x1"),
        ("gpu:h100:16", "comes in the shapes gpu:h100:1"),
        ("tpu v5e", "after a TPU comes its shape"),
        ("", "after a TPU comes its shape"),
    ],
)
def test_others_are_refused_with_what_there_is(text: str, said: str) -> None:
    with pytest.raises(UserError, match="--target is") as refused:
        targets.parse(text)
    assert said in str(refused.value)


def test_published_numbers() -> None:
    """Typed from the makers' pages once more: memory, its rate, dense FLOPS of bfloat16 and of float32's default, links one way."""
    pages = {
        "tpu:v5e": (16 * 2**30, 819e9, 197e12, 197e12, 200e9),
        "tpu:v6e": (32 * 2**30, 1600e9, 918e12, 918e12, 400e9),
        "tpu:v5p": (95 * 2**30, 2765e9, 459e12, 459e12, 600e9),
        "gpu:h100": (84942979072, 3350e9, 989.4e12, 494.7e12, 450e9),
        "gpu:a100": (84974239744, 2039e9, 312e12, 156e12, 300e9),
    }
    assert pages.keys() == targets.DEVICES.keys()
    for name, (memory, bandwidth, bf16, f32, link) in pages.items():
        device = targets.DEVICES[name]
        assert (device.memory, device.bandwidth, device.link) == (memory, pytest.approx(bandwidth), pytest.approx(link))
        assert device.matrix_rate("bfloat16") == pytest.approx(bf16)
        assert device.matrix_rate("float32") == pytest.approx(f32)
        assert 0.7 * memory < device.usable <= memory
        assert device.source
