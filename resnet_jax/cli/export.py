"""``resnet-jax export``: a network as a StableHLO or ONNX file."""

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from tyro.conf import Positional, arg

from resnet_jax.cli.options import AsJson, check_suffix
from resnet_jax.data.augment_device import Preprocessing
from resnet_jax.errors import UserError, require
from resnet_jax.models import Architecture, Execution
from resnet_jax.terminal import show
from resnet_jax.training import fine_tune
from resnet_jax.weights import Pretrained, load_pretrained
from resnet_jax.weights.loading import abstract

Shape = tuple[int, int, int]


def export(
    source: Annotated[Positional[str], arg(metavar="RUN|WEIGHTS")],
    *,
    to: Path,
    as_json: AsJson = False,
) -> None:
    """Write a network as a file that is read without this package: StableHLO or ONNX.

    Its input is a batch of any size of uint8 images (n, height, width, channels), in RGB, already
    resized and cropped; it normalizes them. Its output is float32 logits (n, classes). TO.json
    states the sizes, and how the evaluation resizes and crops.

    Args:
      source: A run, imported weights, or a name on the Hub.
      to: A new file. NAME.stablehlo is for jax.export.deserialize, on CPUs, GPUs and TPUs.
        NAME.onnx computes in float32; writing it needs pip install 'resnet-jax-lab[onnx]'.
    """
    check_suffix("--to", to, ".stablehlo", ".onnx")
    contract_file, is_onnx = to.with_name(f"{to.name}.json"), to.suffix == ".onnx"
    for path in (to, contract_file):
        require(not path.exists(), f"{path} exists: delete it, or use another --to")
    command = "pip install 'resnet-jax-lab[onnx]'"
    require(not is_onnx or bool(find_spec("jax2onnx")), f"jax2onnx is missing. Do: {command}")
    file = Path(source)
    weights = fine_tune.weights_of(file) if file.exists() else load_pretrained(source)
    card = weights.card
    height, width, channels = card.architecture.input_shape
    shape, mean = (card.view.crop or height, card.view.crop or width, channels), card.constants()[0]
    fits = mean.ndim == 1 or mean.shape == shape
    require(fits, f"the mean image of {mean.shape} does not fit images of {shape}")
    content = _onnx(weights, shape) if is_onnx else _stablehlo(weights, shape)
    contract = {
        "input": {"dtype": "uint8", "shape": ["n", *shape]},
        "output": {"dtype": "float32", "shape": ["n", card.architecture.num_classes]},
        "card": json.loads(card.text()),
    }
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_bytes(content)
    contract_file.write_text(json.dumps(contract, indent=1))
    sizes = "x".join(map(str, shape))
    text = f"{to} takes uint8 images of {sizes}, prepared as {contract_file} states"
    show(as_json, {"file": str(to)} | contract, text)


def _function(weights: Pretrained, architecture: Architecture) -> Callable[..., Array]:
    preprocessing = Preprocessing(*weights.card.constants())
    # Neither converter knows custom VJPs.
    apply, _, _ = abstract(architecture, Execution(kernels="plain", blocks="loop"))

    def network(images: UInt8[Array, "n h w c"]) -> Float[Array, "n classes"]:
        images = preprocessing(images)
        return apply(weights.params, weights.batch_stats, images, train=False)[0]

    return network


def _stablehlo(weights: Pretrained, shape: Shape) -> bytes:
    (n,) = jax.export.symbolic_shape("n")
    function = jax.jit(_function(weights, weights.architecture))
    exported = jax.export.export(function, platforms=("cpu", "cuda", "tpu"))
    return bytes(exported(jax.ShapeDtypeStruct((n, *shape), jnp.uint8)).serialize())


def _onnx(weights: Pretrained, shape: Shape) -> bytes:
    import jax2onnx  # pyright: ignore[reportMissingImports]
    import onnxruntime  # pyright: ignore[reportMissingImports]

    # Runtimes have no bfloat16 convolution on CPUs.
    network = _function(weights, replace(weights.architecture, dtype="float32"))
    inputs: Any = [jax.ShapeDtypeStruct(("n", *shape), jnp.uint8)]
    names = {"input_names": ["images"], "output_names": ["logits"]}
    try:
        content = jax2onnx.to_onnx(network, inputs, **names).SerializeToString()
    except Exception as error:  # types of jax2onnx, JAX and NumPy, for what it cannot convert
        raise UserError(f"jax2onnx cannot convert this network: {error!r:.200}") from error
    images = np.random.default_rng(0).integers(0, 256, (2, *shape), np.uint8)
    (logits,) = onnxruntime.InferenceSession(content).run(None, {"images": images})
    expected = np.asarray(jax.jit(network)(images))
    difference = np.abs(logits - expected).max() / max(1, np.abs(expected).max())
    require(difference < 1e-3, f"the ONNX file differs from JAX by {difference:.2g} of the logits")
    return content
