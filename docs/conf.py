"""Configuration of Sphinx: ``make docs``."""

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))
# Tutorials run on CPU, with this environment's commands and without prepared data.
os.environ["JAX_PLATFORMS"] = "cpu"
# Tutorials train the same networks: each program is compiled once.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(DOCS / "_build" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
os.environ["CHECKOUT"] = str(DOCS.parent)
os.environ["TFDS_DATA_DIR"] = tempfile.mkdtemp()
os.environ["IPYTHONDIR"] = tempfile.mkdtemp()
_startup = Path(os.environ["IPYTHONDIR"]) / "profile_default" / "startup"
_startup.mkdir(parents=True)
shutil.copy(DOCS / "notebook_startup.py", _startup)

import generate  # noqa: E402
import links  # noqa: E402
from sphinx.errors import SphinxError  # noqa: E402

import resnet_jax  # noqa: E402

project = "resnet_jax"
author = "the resnet_jax contributors"
project_copyright = "2026, the resnet_jax contributors"
version = release = resnet_jax.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]
# `make linkcheck` also needs a network.
linkcheck_timeout = 20
linkcheck_workers = 4

myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_cache_path = str(DOCS / "_build" / "jupyter_cache")
nb_execution_timeout = 1800
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_merge_streams = True

add_module_names = False  # headings name the modules
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False

html_theme = "sphinx_book_theme"
html_title = "resnet_jax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"show_toc_level": 2, "home_page_in_toc": True, "navbar_persistent": []}


def check_links(app: Any, error: Exception | None) -> None:
    """Fails a build of the site with dead relative links."""
    if error is None and app.builder.name == "html" and (dead := links.dead_in_site(app.outdir)):
        raise SphinxError("dead links:\n" + "\n".join(dead))


def setup(app: Any) -> None:
    generate.write_site(Path(app.srcdir) / "_generated")
    app.connect("build-finished", check_links)
