"""Which images networks are looked at with."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from resnet_jax.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Looking:
    """Options of every command that shows images to networks."""

    sources: Positional[tuple[Path, ...]]
    """Runs, or files of weights that 'resnet-jax weights import' wrote: a residual network and its plain twin, say."""
    images: int = 1000
    """The first so many of the split."""
    data: str | None = None
    """Data set; the one that each was trained on where not given."""
    split: str | None = None
    """The test split where not given."""
    batch_size: int = 200
    """Images at once."""
    data_dir: str | None = None
    """Where prepared data sets are looked for, before $TFDS_DATA_DIR and ~/tensorflow_datasets."""

    def check(self, command: str) -> None:
        """Raises UserError for numbers below 1, and where nothing is to be looked at."""
        if min(self.images, self.batch_size) < 1:
            raise UserError(f"--images is {self.images} and --batch-size {self.batch_size}; give at least 1")
        if not self.sources:
            raise UserError(f"give at least one run or file of weights: resnet-jax lab {command} RUN")
