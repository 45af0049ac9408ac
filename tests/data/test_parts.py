"""Parts of augmentation by their short names."""

import pytest

from resnet_jax import configured
from resnet_jax.configured import configured as with_arguments
from resnet_jax.data import parts
from resnet_jax.data.crops import RandomResizedCrop
from resnet_jax.models import names


def test_the_parts_are_known_by_name_and_nothing_else_is() -> None:
    assert set(parts.known()) == {
        "RandomResizedCrop", "ShorterSideCrop", "CentreCrop", "RandAugment", "TrivialAugment", "TimmRandAugment",
        "PcaLighting", "ColorJitter", "RandomErasing", "Mix",
    }  # fmt: skip
    assert not set(parts.known()) & set(names.known())


@pytest.mark.parametrize(
    "written",
    [
        "RandomResizedCrop(area=(0.25, 1.0))", "ShorterSideCrop(filter='bicubic', shorter_side=(256, 320))", "TrivialAugment",
        "TimmRandAugment(magnitude=6.0)", "RandomErasing(probability=0.35)", "Mix(cutmix=1.0, mixup=0.1)", "ColorJitter(lighting=0.1)",
    ],
)  # fmt: skip
def test_parts_are_read_and_written_by_their_names(written: str) -> None:
    known = parts.known()
    read = configured.parse(written, known.__getitem__)
    assert configured.text(read, lambda made: made.__name__) == written
    read()


def test_a_whole_number_for_a_real_one_is_the_same_part() -> None:
    assert with_arguments(parts.known()["Mix"], cutmix=1) == configured.parse("Mix(cutmix=1.0)", parts.known().__getitem__)
    assert with_arguments(RandomResizedCrop, area=(0.25, 1.0))() == RandomResizedCrop((0.25, 1.0))
