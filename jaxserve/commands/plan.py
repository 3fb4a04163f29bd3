"""`jaxserve plan`: print a model's memory plan for this or other hardware, without loading it."""

import argparse

from jaxserve.commands.arguments import add_engine_arguments, add_target, model_of
from jaxserve.config.flags import ENGINE_FLAGS, engine_options, given

HELP = "print the memory plan of a model without loading it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_engine_arguments(parser)
    add_target(parser)


def run(args: argparse.Namespace) -> int:
    """Print the plan. Raises MemoryPlanError if the model does not fit."""
    options = engine_options(model_of(args), given(args, ENGINE_FLAGS))
    from jaxserve.planning.planner import plan_engine

    for line in plan_engine(options, target=args.target).lines():
        print(line)
    return 0
