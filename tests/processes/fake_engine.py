"""An engine's process on the fake device, which starts in no time. `model` of its options is JSON.

names: of its model. step_s: seconds a step takes. starts: a file that counts starts. mistake: words
to refuse to start with. tokenizer: the one that API processes are to load. crashes_from: the start
from which on loading crashes. gate: a file without which no engine becomes ready, but for the first
if gates_from is 2. hangs_s, works_s: how long loading waits for nothing, and computes. compiles_s:
how long a thread works on behind what is served.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from jaxserve.api.engine_config import CacheConfig, SchedulerConfig
from jaxserve.api.model_limits import ModelLimits
from jaxserve.api.plan import StepPlan
from jaxserve.config.engine import EngineOptions
from jaxserve.engine import Engine, Scheduler
from jaxserve.errors import CheckpointError
from jaxserve.frontend.generation_defaults import GenerationDefaults
from jaxserve.observability.metrics import Metrics
from jaxserve.processes.engine import ServedEngine, main
from jaxserve.processes.leave import leave
from jaxserve.processes.messages import Hello
from tests.fakes import FakePendingStep, FakeRunner

VOCAB_SIZE = 64
MAX_MODEL_LEN = 4096
PAGE_SIZE = 16
MAX_NUM_SEQS = 32
CACHE = CacheConfig.paged(
    num_pages=1 + MAX_NUM_SEQS * MAX_MODEL_LEN // PAGE_SIZE, page_size=PAGE_SIZE
)


class Device(FakeRunner):
    """The fake device, which takes its time, breaks when it meets 13 and hangs when it meets 14.

    When it meets 15 it compiles for 3 s.
    """

    def __init__(self, step_s: float) -> None:
        super().__init__(
            cache=CACHE,
            max_num_seqs=MAX_NUM_SEQS,
            max_num_batched_tokens=512,
            vocab_size=VOCAB_SIZE,
        )
        self._step_s = step_s
        self.is_compiling = False

    def dispatch(self, plan: StepPlan) -> FakePendingStep:
        time.sleep(self._step_s)
        self.plans.clear()
        for assignment in plan.assignments:
            if assignment.prompt_ids[0] == 13:
                raise MemoryError("the device is out of memory")
            if assignment.prompt_ids[0] == 14:
                time.sleep(3600)
            if assignment.prompt_ids[0] == 15:
                self.is_compiling = True
                time.sleep(3.0)
                self.is_compiling = False
        return super().dispatch(plan)


def load(options: EngineOptions, plan: Callable[[Hello], None], engine: str) -> ServedEngine:
    assert "jax" not in sys.modules, "tests wait for this start"
    settings = json.loads(options.model or "{}")
    count = 1
    if "starts" in settings:
        starts = Path(settings["starts"])
        count += len(starts.read_text().split()) if starts.exists() else 0
        with starts.open("a") as file:
            file.write(f"{os.getpid()}\n")
    if "mistake" in settings:
        raise CheckpointError(settings["mistake"])
    names = (*settings.get("names", ("tiny", "alias")),)
    plan(
        Hello(
            names=names,
            created=int(time.time()),
            tokenizer=settings.get("tokenizer", ""),
            chat_template=None,
            max_model_len=MAX_MODEL_LEN,
            vocab_size=VOCAB_SIZE,
            max_logprobs=20,
            logprobs_mode="raw_logprobs",
            defaults=GenerationDefaults(),
            has_priorities=False,
            max_queued_requests=64,
            fingerprint="fake",
            kernels={"paged_attention": ("fake", {"fast": "not here"})},
        )
    )
    while count >= settings.get("gates_from", 1) and not Path(settings.get("gate", "/")).exists():
        time.sleep(0.01)
    time.sleep(settings.get("hangs_s", 0.0))
    busy_until_s = time.monotonic() + settings.get("works_s", 0.0)
    while time.monotonic() < busy_until_s:
        pass
    if "compiles_s" in settings:
        threading.Thread(target=time.sleep, args=(settings["compiles_s"],)).start()
    if count >= settings.get("crashes_from", 1000):
        raise RuntimeError("this start was told to fail")
    metrics = Metrics(max_model_len=MAX_MODEL_LEN)
    device = Device(settings.get("step_s", 0.0))
    served = Engine(
        Scheduler(
            SchedulerConfig(
                max_model_len=MAX_MODEL_LEN, max_num_seqs=MAX_NUM_SEQS, max_num_batched_tokens=512
            ),
            CACHE,
        ),
        device,
        ModelLimits(vocab_size=VOCAB_SIZE),
        metrics=metrics.engine(names[0], engine=engine),
    )
    return ServedEngine(served, metrics, is_compiling=lambda: device.is_compiling)


if __name__ == "__main__":
    leave(main(int(sys.argv[1]), load))
