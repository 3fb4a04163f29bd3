"""Run a script that uses transformers' continuous batching on a CPU, for peers.py.

    PYTHON benchmarks/peer_transformers.py SCRIPT ARGUMENTS...

Works around two problems of transformers 5.23: its compute thread may not write to tensors that the
script created in inference mode, and its cache takes 60 % of all memory, where a tenth suffices.
"""

import runpy
import sys

import torch  # type: ignore[import-not-found]
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching import continuous_api

MEMORY_SHARE = 0.1


class Bounded(ContinuousBatchingConfig):
    """The default settings, but for memory."""

    def __init__(self) -> None:
        super().__init__(max_memory_percent=MEMORY_SHARE)


def main() -> None:
    """Run the script."""
    torch.inference_mode = torch.no_grad
    continuous_api.ContinuousBatchingConfig = Bounded  # type: ignore[assignment,attr-defined]
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
