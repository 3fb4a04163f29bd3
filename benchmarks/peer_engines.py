"""The engines that peers.py compares: how to run each, and what it does not support.

Runners are external scripts in the folder --peers-dir. Each prints lines `RESULT {json}`;
peer_jaxserve.py does the same for jaxserve.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peer_setup import PeerError, Setup, free_port, serving

HERE = Path(__file__).parent
NO_SERVER = "has no HTTP server of its own"


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """An engine and the arguments of its runner script.

    python: name of its interpreter. words: its names of precisions. modes: its names of workloads.
    files: name of its model in models/. wrapper: script of this project that runs the script.
    cannot: reasons, by unsupported precision or workload. is_compared: compare its tokens.
    """

    name: str
    script: str
    words: Mapping[str, str]
    modes: Mapping[str, str]
    python: str | None = None
    files: str = "{model}"
    wrapper: str | None = None
    is_compared: bool = True
    cannot: Mapping[str, str] = field(default_factory=dict[str, str])

    def run(self, setup: Setup, precision: str, workloads: Sequence[str]) -> Iterator[Any]:
        """Measure once, and yield results; raises PeerError for what fails, after what did not."""
        word = self.words[precision]
        modes = ",".join(self.modes[each] for each in workloads if each in self.modes)
        if modes:
            yield from setup.results_of([*self._program(setup), setup.model, word, modes, "1"])
        if "W3" in workloads and "W3" not in self.modes and "W3" not in self.cannot:
            yield from self._serve(setup, word)

    def tokens(
        self, setup: Setup, precision: str, *, num_requests: int, num_tokens: int
    ) -> list[list[int]]:
        """Return greedy tokens for the first requests of W1, each run alone."""
        counts = (str(num_requests), str(num_tokens))
        return self._tokens(setup, self._files(setup, precision), (*counts, precision))

    def _tokens(self, setup: Setup, model: str, rest: Sequence[str]) -> list[list[int]]:
        python = sys.executable if self.python is None else setup.python(self.python)
        worker = [python, str(HERE / "peer_tokens.py"), self.name, model]
        [tokens] = setup.results_of([*worker, str(setup.home / "workload.json"), *rest])
        return list(tokens)

    def _files(self, setup: Setup, precision: str) -> str:
        name = self.files.format(model=setup.model, word=self.words[precision])
        path = setup.home / "models" / name
        if not path.exists():
            raise PeerError(f"there is no {path}")
        return str(path)

    def _program(self, setup: Setup) -> list[str]:
        script = setup.peers_dir / self.script
        if not script.is_file():
            raise PeerError(f"there is no runner {script}")
        wrapper = [] if self.wrapper is None else [str(HERE / self.wrapper)]
        python = "bash" if self.python is None else setup.python(self.python)
        return [python, *wrapper, str(script)]

    def _serve(self, setup: Setup, word: str) -> list[Any]:
        raise NotImplementedError


class Vllm(Engine):
    """vLLM's CPU build; its own server does W3."""

    def _serve(self, setup: Setup, word: str) -> list[Any]:
        command = [
            *(setup.python("vllm"), "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(setup.folder), "--served-model-name", "x", "--dtype", word),
            *("--max-model-len", "1024", "--max-num-seqs", "64", "--no-enable-prefix-caching"),
            *("--disable-uvicorn-access-log", "--host", "127.0.0.1", "--port"),
        ]
        return setup.drive(command, name="vllm-cpu-server", word=word, ready="/health")


class LlamaCpp(Engine):
    """llama.cpp's server, which does all workloads over HTTP."""

    def _tokens(self, setup: Setup, model: str, rest: Sequence[str]) -> list[list[int]]:
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        server = [str(setup.home / "llama_build" / "bin" / "llama-server"), "-m", model]
        options = ["-t", str(setup.threads), "-c", "2048", "-np", "1", "--port", str(port)]
        with serving([*server, *options], setup.environment(server[0]), f"{url}/health"):
            return Engine._tokens(self, setup, url, rest)  # noqa: SLF001

    def run(self, setup: Setup, precision: str, workloads: Sequence[str]) -> Iterator[Any]:
        """See Engine; the script has its own order of arguments."""
        word = self.words[precision]
        modes = ",".join(self.modes[each] for each in workloads)
        rest = ["1", str(setup.num_prompts), str(setup.threads)]
        yield from setup.results_of([*self._program(setup), setup.model, word, modes, *rest])


class Jaxserve(Engine):
    """This engine, in the process of peer_jaxserve.py, and as `jaxserve serve` for W3."""

    def run(self, setup: Setup, precision: str, workloads: Sequence[str]) -> Iterator[Any]:
        """See Engine; precisions are flags."""
        flags = [*FLAGS[precision], *COMMON_FLAGS, *setup.flags]
        modes = [each.lower() for each in workloads if each != "W3"]
        if modes:
            runner = [sys.executable, str(HERE / self.script), ",".join(modes), precision]
            yield from setup.results_of([*runner, str(setup.folder), *flags])
        if "W3" in workloads:
            serve = [sys.executable, "-m", "jaxserve", "serve", str(setup.folder), *flags]
            names = ["--served-model-name", "x", "--log-level", "error", "--port"]
            yield from setup.drive(
                [*serve, *names], name="jaxserve-server", word=precision, ready="/ready"
            )


# Settings that the runners of other engines use as well.
COMMON_FLAGS = (
    *("--max-num-seqs", "64", "--max-model-len", "1024", "--no-enable-prefix-caching"),
    *("--warm-up", "full"),
)
FLAGS = {
    "f32": ("--dtype", "float32"),
    "int8": ("--dtype", "float32", "--quantization", "int8"),
}
PRECISIONS = tuple(FLAGS)
W1, W2, W3 = WORKLOADS = ("W1", "W2", "W3")

JAXSERVE = Jaxserve(
    name="jaxserve", script="peer_jaxserve.py", words={each: each for each in FLAGS}, modes={}
)
PEERS: Sequence[Engine] = (
    Engine(
        name="transformers",
        python="hf",
        script="run_hf.py",
        words={"f32": "float32"},
        modes={W1: "w1static16", W2: "w2"},
        cannot={"int8": "has no 8-bit weights on CPUs", W3: "its server takes no token ids"},
    ),
    Engine(
        name="transformers-continuous",
        python="hf",
        script="run_hf.py",
        wrapper="peer_transformers.py",
        words={"f32": "float32"},
        modes={W1: "w1cb"},
        cannot={"int8": "see transformers", W2: "see transformers", W3: "see transformers"},
        is_compared=False,
    ),
    Engine(
        name="openvino",
        python="ov",
        script="run_openvino.py",
        words={"f32": "f32", "int8": "int8"},
        modes={W1: "w1", W2: "w2"},
        files="ov-{model}-{word}",
        cannot={W3: NO_SERVER},
    ),
    Vllm(
        name="vllm",
        python="vllm",
        script="run_vllm.py",
        words={"f32": "float32"},
        modes={W1: "w1", W2: "w2"},
        cannot={"int8": "needs a checkpoint that is quantized already"},
    ),
    Engine(
        name="ctranslate2",
        python="ct2",
        script="run_ct2.py",
        words={"f32": "float32", "int8": "int8"},
        modes={W1: "w1", W2: "w2"},
        files="ct2-{model}",
        cannot={W3: NO_SERVER},
    ),
    LlamaCpp(
        name="llama.cpp",
        script="run_llamacpp.sh",
        words={"f32": "f32", "int8": "q8_0"},
        modes={W1: "w1", W2: "w2", W3: "w3"},
        files="gguf/{model}-{word}.gguf",
    ),
)
