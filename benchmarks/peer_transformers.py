"""Runs a script on transformers so that its continuous batching works on a CPU; for peers.py.

    PYTHON benchmarks/peer_transformers.py SCRIPT ARGUMENTS...

transformers 5.23 computes in a thread of its own, which may not write to tensors that the script
made in inference mode; and it takes 60 % of all memory for its cache, where a tenth is plenty.
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
