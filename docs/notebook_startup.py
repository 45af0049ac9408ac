"""Runs in the kernel of each tutorial before its first cell; conf.py installs it."""

import os
import subprocess

from IPython.core.magic import register_cell_magic

# A kernel asks for colors, and a terminal's progress bars do not belong in a page.
os.environ["COLUMNS"] = "92"
for _name in ("FORCE_COLOR", "CLICOLOR_FORCE", "CLICOLOR"):
    os.environ.pop(_name, None)


@register_cell_magic
def sh(_: str, cell: str) -> None:
    """Replaces IPython's %%sh, which emits chunks that are split within lines."""
    command = ["bash", "-euc", cell]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    print(done.stdout.strip())
    done.check_returncode()
