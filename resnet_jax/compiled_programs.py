"""Where compiled programs are kept from one process to the next: jax's persistent cache, in a folder of the user's."""

import os
from collections.abc import MutableMapping
from pathlib import Path

# Programs that compile quicker than this are compiled again: reading them costs about as much.
_LEAST_SECONDS = "0.3"


def directory(variables: MutableMapping[str, str] = os.environ) -> Path | None:
    """``JAX_COMPILATION_CACHE_DIR``, else ``resnet_jax`` in ``XDG_CACHE_HOME`` or ``~/.cache``; None where the cache is switched off
    (``JAX_ENABLE_COMPILATION_CACHE=false``, or an empty ``JAX_COMPILATION_CACHE_DIR``).
    """
    if variables.get("JAX_ENABLE_COMPILATION_CACHE", "true").lower() in ("0", "false", "no", "off"):
        return None
    given = variables.get("JAX_COMPILATION_CACHE_DIR")
    if given is not None:
        return Path(given) if given else None
    # The XDG base directory specification: paths that are not absolute are ignored.
    base = variables.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "resnet_jax" / "compiled"


def keep(variables: MutableMapping[str, str] = os.environ) -> Path | None:
    """Switches the cache on, by the variables that jax reads when it is imported; what the user has set stays. Returns its folder.

    A folder that cannot be written is no reason to stop: then nothing is kept.
    """
    try:
        folder = directory(variables)
        if folder is None or "JAX_COMPILATION_CACHE_DIR" in variables:
            return folder
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return None
    if not os.access(folder, os.W_OK):
        return None
    variables["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    variables.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", _LEAST_SECONDS)
    return folder
