"""Protocols by the names that papers and code bases give them."""

import tomllib
from importlib import resources

import pytest
from resnet_jax.errors import UserError
from resnet_jax.evaluation import protocols
from resnet_jax.evaluation.protocols import Protocol
from resnet_jax.weights import View

PARSED = {
    "256/224": (Protocol(resize=256, crop=224), "single 224x224 of 256"),
    "232/224": (Protocol(resize=232, crop=224), "single 224x224 of 232"),
    "320/320": (Protocol(resize=320, crop=320), "single 320x320 of 320"),
    "236/224-bicubic": (Protocol(resize=236, crop=224, interpolation="bicubic"), "single 224x224 of 236, bicubic"),
    "ten-crop": (Protocol(resize=256, crop=224, crops=10), "10 crops 224x224 of 256"),
    "ten-crop-40/32": (Protocol(resize=40, crop=32, crops=10), "10 crops 32x32 of 40"),
    "ten-crop-bicubic": (Protocol(resize=256, crop=224, crops=10, interpolation="bicubic"), "10 crops 224x224 of 256, bicubic"),
    "multi-scale": (Protocol(scales=(224, 256, 384, 480, 640)), "multi-scale"),
    "multi-scale-224,256,384": (Protocol(scales=(224, 256, 384)), "multi-scale 224, 256, 384"),
    "multi-scale-bicubic": (Protocol(scales=(224, 256, 384, 480, 640), interpolation="bicubic"), "multi-scale, bicubic"),
}


def test_protocols_are_parsed_and_described() -> None:
    for text, (expected, view) in PARSED.items():
        protocol = protocols.parse(text)
        assert (protocol, protocol.view()) == (expected, view)
    assert protocols.parse("ten-crop-256/224") == protocols.parse("ten-crop")
    assert protocols.parse("multi-scale-224,256,384,480,640") == protocols.parse("multi-scale")


def test_views_equal_those_of_the_ledger() -> None:
    """The view of every published table of He et al. on ImageNet has a protocol that says exactly it."""
    said = {protocols.parse(text).view() for text in ("256/224", "ten-crop", "multi-scale", "320/320")}
    published = set()
    for paper in ("he2015", "he2016"):
        text = (resources.files("resnet_jax") / "studies" / "published" / f"{paper}.toml").read_text()
        published |= {protocol.get("view", "") for protocol in tomllib.loads(text)["protocol"].values()}
    assert said <= published


def test_unknown_protocols_are_rejected_with_an_example() -> None:
    for text in (
        *("", "224", "224/256", "256/0", "0/0", "256x224", "256/224 ", "99999/99999", "٢٥٦/224"),
        *("256/224-lanczos", "256/224-bicubic-bicubic", "-bicubic", "ten-crops", "ten-crop-224"),
        *("multi-scale-", "multi-scale-0", "multi-scale-64,64", "multi-scale-64,", "multi-scale-64/32"),
    ):
        with pytest.raises(UserError, match="256/224|multi-scale-224,256,384") as error:
            protocols.parse(text)
        assert repr(text) in str(error.value)


def test_card_converts_to_a_protocol() -> None:
    constants = {"mean": (0.5,), "deviation": (0.5,)}
    seen = View(**constants, resize=236, crop=224, interpolation="bicubic")
    assert protocols.of(seen) == protocols.parse("236/224-bicubic")
    whole = protocols.of(View(**constants))
    assert (whole, whole.view(32, 32)) == (Protocol(), "single 32x32")
