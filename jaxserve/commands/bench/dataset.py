"""Arguments that select a workload, with vLLM's names."""

import argparse
import json
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxserve.bench.datasets import DatasetOptions
    from jaxserve.bench.workload import Workload
    from jaxserve.offline.llm import LLM

NAMES = ("random", "sharegpt", "sharegpt-like", "prefix_repetition", "custom")


def add_dataset_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments. Those not given set no attribute."""
    group = parser.add_argument_group("workload")

    def count(name: str, text: str) -> None:
        group.add_argument(name, type=int, metavar="N", default=argparse.SUPPRESS, help=text)

    group.add_argument(
        "--dataset-name",
        "--dataset",
        choices=NAMES,
        default=argparse.SUPPRESS,
        help="what to ask for (default: random); sharegpt without a file is sharegpt-like",
    )
    group.add_argument(
        "--dataset-path",
        type=Path,
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="ShareGPT's JSON, JSON lines of prompt and output_tokens, or JSON of token ids",
    )
    count("--input-len", "tokens of each prompt, whatever the dataset's own flag says")
    count("--output-len", "tokens generated for each, likewise")
    count("--random-input-len", "random: tokens of each prompt (default: 1024)")
    count("--random-output-len", "random: tokens generated for each (default: 128)")
    group.add_argument(
        "--random-range-ratio",
        type=range_ratio,
        metavar="R",
        default=argparse.SUPPRESS,
        help="random: lengths between (1 - R) and (1 + R) times these (default: 0);"
        ' {"input": R, "output": R} for one each',
    )
    count("--random-prefix-len", "random: tokens that all prompts begin with (default: 0)")
    count("--sharegpt-output-len", "sharegpt: tokens generated, instead of the answer's own")
    count("--custom-output-len", "custom: tokens generated, instead of output_tokens")
    count("--prefix-repetition-prefix-len", "prefix_repetition: tokens shared (default: 256)")
    count("--prefix-repetition-suffix-len", "prefix_repetition: tokens not (default: 256)")
    count("--prefix-repetition-num-prefixes", "prefix_repetition: prefixes (default: 10)")
    count("--prefix-repetition-output-len", "prefix_repetition: tokens out (default: 128)")
    for name, text in (
        ("--disable-shuffle", "keep the order of the file"),
        ("--no-oversample", "do not repeat requests of a file that has too few"),
    ):
        group.add_argument(name, action="store_true", default=argparse.SUPPRESS, help=text)


def add_workload_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for a benchmark in this process; see `workload_for`."""
    add_dataset_arguments(parser)
    group = parser.add_argument_group("size of the workload")
    group.add_argument("--workload", type=Path, metavar="FILE", help="JSON file of token ids")
    group.add_argument(
        "--num-prompts", type=int, metavar="N", help="how many (default: 64, or the whole file)"
    )


def dataset_options(args: argparse.Namespace, **defaults: Any) -> "DatasetOptions":
    """Return the options, with defaults. Raises ConfigError for invalid combinations."""
    from jaxserve.bench.datasets import DatasetOptions

    given = vars(args)
    names = [each.name for each in fields(DatasetOptions)]
    values = {name: given[name] for name in names if given.get(name) is not None}
    if "dataset_name" in given:
        values["name"] = given["dataset_name"]
    if "dataset_path" in given:
        values["path"] = given["dataset_path"]
    return DatasetOptions(**(defaults | values))


def workload_for(llm: "LLM", args: argparse.Namespace) -> "Workload":
    """Return the workload for this process: a file of token ids, or a dataset."""
    from jaxserve.bench.datasets import load_dataset
    from jaxserve.bench.throughput import vocabulary_of
    from jaxserve.bench.workload import read_workload

    if args.workload is not None:
        return read_workload(args.workload).first(args.num_prompts)

    defaults = {"num_prompts": 64, "random_input_len": 128, "random_output_len": 128}
    return load_dataset(dataset_options(args, **defaults), lambda: vocabulary_of(llm))


def range_ratio(text: str) -> tuple[float, float]:
    """Parse a ratio for input and output, or JSON with one for each. Raises ValueError."""
    if text.lstrip().startswith("{"):
        ratios = json.loads(text)
        if set(ratios) != {"input", "output"}:
            raise ValueError
        return float(ratios["input"]), float(ratios["output"])
    return float(text), float(text)


def numbers(text: str) -> list[int]:
    """Parse positive integers separated by commas."""
    values = [int(part) for part in text.split(",")]
    if min(values) < 1:
        raise ValueError
    return values


def rates(text: str) -> list[float]:
    """Parse positive numbers separated by commas; inf is allowed."""
    values = [float(part) for part in text.split(",")]
    if not min(values) > 0:
        raise ValueError
    return values
