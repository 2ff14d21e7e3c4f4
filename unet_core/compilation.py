"""A network -> the same as one compiled graph, for training: torch.compile, with the same graph in every worker."""

import torch
from torch import Tensor, nn

from unet_core.errors import TrainingError

#: What of torch's compiler turns a graph into machine code.
BACKEND = "inductor"


def compile_network(network: nn.Module, device: torch.device) -> nn.Module:
    """A compiled form of a network, with its own weights: training the one trains the other.

    Each size of batch has a graph of its own, always a whole one: it must not depend on what a worker ran before, or
    bits would. TrainingError where nothing can be compiled.
    """
    # What was compiled for an earlier network counts against the limit of this one.
    torch.compiler.reset()
    # Else DDP cuts the graph at the borders of its buckets, and two workers run others than one.
    torch._dynamo.config.optimize_ddp = False
    # Machine code is compiled in this process: a training must not leave a pool of others behind.
    torch._inductor.config.compile_threads = 1
    _try_compiler(device)
    compiled: nn.Module = torch.compile(network, backend=BACKEND, fullgraph=True, dynamic=False)  # type: ignore[assignment]
    return compiled


def _try_compiler(device: torch.device) -> None:
    """Compile next to nothing: whether there is a compiler, and all that it needs, is seen no other way."""
    try:
        torch.compile(_smallest, backend=BACKEND, fullgraph=True)(torch.zeros(1, device=device))
    except Exception as error:  # whatever the compiler's parts raise where one of them is missing
        text = " ".join(str(error).split("\n\n")[0].split())[:200]
        raise TrainingError(
            f"train.compile: nothing can be compiled on this host: {text}. Install a C++ compiler (on a GPU triton, "
            "too), or set train.compile: false."
        ) from error


def _smallest(values: Tensor) -> Tensor:
    return values + 1
