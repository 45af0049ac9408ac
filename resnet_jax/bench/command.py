"""``resnet-jax bench``: each benchmark prints a short table, and writes it as JSON with device and versions where asked."""

from collections.abc import Callable, Sequence

from resnet_jax import options as options_lib


def _benchmark(module: str, doc: str) -> Callable[[Sequence[str]], None]:
    return options_lib.later(f"resnet_jax.bench.commands.{module}", doc)


BENCHMARKS: dict[str, Callable[[Sequence[str]], None]] = {
    "step": _benchmark("step", "Images/s of training and inference beside peers: resnet-jax bench step [--networks resnet50]"),
    "layers": _benchmark(
        "layers", "Where a step spends its time, convolution by convolution: resnet-jax bench layers [--networks resnet50]"
    ),
    "execution": _benchmark("executions", "Seconds of a training step, loop against scan: resnet-jax bench execution [--depths 20 56]"),
    "compile": _benchmark("compilation", "Cost of compiling a training step, by depth: resnet-jax bench compile [--depths 20 110]"),
    "dispatch": _benchmark("dispatch", "Host time of a step, by steps in a call: resnet-jax bench dispatch [--network resnet50]"),
    "seeds": _benchmark("seeds", "Several seeds in one program against one after another: resnet-jax bench seeds [--seeds 1 2 4]"),
    "run": _benchmark("whole_run", "Wall time of the paper's recipe: resnet-jax bench run cifar_resnet --depth 20 [--steps 64000]"),
    "flags": _benchmark("flags", "Which XLA flags are accepted here, and which help: resnet-jax bench flags [--network cifar_resnet20]"),
    "program": _benchmark(
        "program", "Kernels and bytes of a step for a device that is not there: resnet-jax bench program --target gpu:h100"
    ),
    "input": _benchmark("input", "What reading and augmenting images costs, by stage: resnet-jax bench input [EXPERIMENT]"),
}


def run(arguments: Sequence[str]) -> None:
    """Dispatches to a benchmark."""
    options_lib.dispatch("bench", BENCHMARKS, arguments)
