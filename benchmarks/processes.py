"""Measure the cost between an engine and its clients: text, and transport between processes.

    python benchmarks/processes.py --sequences 1 32 256

The runner returns tokens immediately, so the device adds no time. A row has microseconds per token
(medians over steps) of the engine thread without the scheduler (`emit`), of detokenization
(`text`), and of MessagePack on both ends, and the bytes per token. The latency is that of a request
for one token through a thread and through a process; the difference is the cost of two hops.
"""

import argparse
import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from tempfile import TemporaryDirectory

import zmq
from tokenizers import Tokenizer, decoders, models

from jaxserve.api.engine_config import CacheConfig, SchedulerConfig
from jaxserve.api.model_limits import ModelLimits
from jaxserve.api.plan import DeferredSamplePlan, StepLimits, StepPlan, StepResult, StepRun
from jaxserve.api.request import Request
from jaxserve.api.sampling_params import SamplingParams
from jaxserve.api.tokens import TokenBatch
from jaxserve.bench.machine import describe_machine
from jaxserve.client import EngineClient
from jaxserve.client.in_process import InProcessClient
from jaxserve.client.remote import RemoteClient
from jaxserve.client.wire import SocketPort, decode_reply, encode_command, encode_reply
from jaxserve.engine import Engine, Scheduler
from jaxserve.engine.loop import Leave, Reply, run_engine
from jaxserve.frontend.output_processor import OutputProcessor
from jaxserve.observability.metrics import Metrics

VOCAB_SIZE = 1000
MAX_MODEL_LEN = 2048
PAGE_SIZE = 16
PROMPT_IDS = tuple(range(8))


@dataclass(slots=True)
class InstantStep:
    """A step that is over when it begins."""

    result: StepResult
    run: StepRun

    def is_ready(self) -> bool:
        """See plan.PendingStep."""
        return True

    def wait(self) -> StepResult:
        """See plan.PendingStep."""
        return self.result


@dataclass(slots=True)
class InstantRunner:
    """A device that takes no time and counts upwards."""

    num_steps: int = 0
    max_in_flight: int = 2

    @property
    def limits(self) -> StepLimits:
        """See plan.Runner."""
        return StepLimits(num_tokens=1 << 20, num_sequences=1 << 20)

    def dispatch(self, plan: StepPlan) -> InstantStep:
        """See plan.Runner."""
        self.num_steps += 1
        token_ids = tuple(
            ((self.num_steps + row.slot) % VOCAB_SIZE,) if row.samples else () for row in plan.rows
        )
        count = plan.num_tokens
        run = StepRun(program="", num_tokens=count, padded_tokens=count, padded_sequences=count)
        return InstantStep(StepResult(token_ids=token_ids), run)

    def sample_deferred(self, plan: DeferredSamplePlan) -> InstantStep:
        """See plan.Runner."""
        raise NotImplementedError("no request here follows a grammar")


def new_engine(num_sequences: int) -> Engine:
    """Return an engine on the instant device, as served: with metrics."""
    pages = num_sequences * MAX_MODEL_LEN // PAGE_SIZE + 1
    scheduler = SchedulerConfig(
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=num_sequences,
        max_num_batched_tokens=max(512, num_sequences * len(PROMPT_IDS)),
    )
    return Engine(
        Scheduler(scheduler, CacheConfig.paged(num_pages=pages, page_size=PAGE_SIZE)),
        InstantRunner(),
        ModelLimits(vocab_size=VOCAB_SIZE),
        metrics=Metrics(max_model_len=MAX_MODEL_LEN).engine("bench"),
    )


def words() -> Tokenizer:
    """Return a tokenizer of words, so that every token becomes text."""
    tokenizer = Tokenizer(models.WordLevel({f" w{token}": token for token in range(VOCAB_SIZE)}))
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


@dataclass(slots=True)
class Costs:
    """Microseconds per token of each part of each step."""

    us: dict[str, list[float]] = field(default_factory=dict[str, list[float]])

    def time[R](self, part: str, num_tokens: int, work: Callable[[], R]) -> R:
        """Do the work, and take down what it cost per token."""
        start_s = time.perf_counter()
        result = work()
        self.us.setdefault(part, []).append((time.perf_counter() - start_s) / num_tokens * 1e6)
        return result


def measure_step(num_sequences: int, *, num_steps: int) -> str:
    """Return a row of the table."""
    engine = new_engine(num_sequences)
    processor = OutputProcessor(words(), engine)
    params = SamplingParams(max_tokens=2 * num_steps, ignore_eos=True)
    for index in range(num_sequences):
        request = Request(id=str(index), prompt_ids=PROMPT_IDS, params=params)
        engine.add(request, first_key=processor.open(request))
    for _ in range(num_steps // 2):  # until all of them decode
        for batch in engine.step().values():
            processor.feed(batch)
    costs, sizes = Costs(), []
    engine.timeline.recent.clear()
    for _ in range(num_steps):
        (batch,) = engine.step().values()
        frame = costs.time("encode", num_sequences, partial(encode_reply, batch))
        sizes.append(len(frame) / num_sequences)
        read = costs.time("decode", num_sequences, partial(decode_reply, frame))
        costs.time("text", num_sequences, partial(feed, processor, read))
    emit = [record.emit_s / num_sequences * 1e6 for record in engine.timeline.recent]
    cells = [median(emit), *(median(costs.us[part]) for part in ("encode", "decode", "text"))]
    return f"{num_sequences:>9}{''.join(f'{cell:>10.2f}' for cell in cells)}{median(sizes):>10.1f}"


def measure_port(num_sequences: int, *, num_steps: int) -> tuple[float, float]:
    """Return the microseconds that an empty inbox and a batch to send cost the engine's thread."""
    batch = TokenBatch(keys=[*range(num_sequences)], token_ids=[*range(num_sequences)])
    look, send = [], []
    with TemporaryDirectory() as folder, zmq.Context() as context:
        address = f"ipc://{folder}/engine"
        with (
            SocketPort(address, beat=lambda: True, gone=lambda: ()) as port,
            context.socket(zmq.DEALER) as client,
        ):
            client.setsockopt(zmq.IDENTITY, b"0")
            client.connect(address)
            client.send_multipart(encode_command(Leave()))
            while not list(port.receive(1.0)):
                pass
            for _ in range(num_steps):
                start_s = time.perf_counter()
                for _ in port.receive(0.0):
                    pass
                looked_s = time.perf_counter()
                port.send(0, batch)
                send.append(time.perf_counter() - looked_s)
                look.append(looked_s - start_s)
                client.recv()
    return median(look) * 1e6, median(send) * 1e6


def feed(processor: OutputProcessor, reply: Reply) -> None:
    """Make events of a batch."""
    assert isinstance(reply, TokenBatch)
    processor.feed(reply)


async def latencies(client: EngineClient, count: int) -> list[float]:
    """Return the seconds of requests of one token, one after the other."""
    found = []
    for index in range(count):
        params = SamplingParams(max_tokens=1)
        request = Request(id=str(index), prompt_ids=PROMPT_IDS, params=params)
        start_s = time.perf_counter()
        async for _ in client.generate(request):
            pass
        found.append(time.perf_counter() - start_s)
    await client.shutdown(drain_timeout_s=1.0)
    return found[count // 10 :]


def through_a_thread(count: int) -> list[float]:
    """Return latencies with the engine on a thread of this process."""
    return asyncio.run(latencies(InProcessClient(new_engine(1), words()), count))


def through_a_process(count: int) -> list[float]:
    """Return latencies with the engine in another process."""

    async def measure(address: str) -> list[float]:
        client = RemoteClient()
        client.connect(address, client=0, tokenizer=words())
        return await latencies(client, count)

    with TemporaryDirectory() as folder:
        address = f"ipc://{folder}/engine"
        with subprocess.Popen([sys.executable, __file__, "--engine", address]) as engine:
            try:
                return asyncio.run(measure(address))
            finally:
                engine.terminate()


def serve_engine(address: str) -> None:
    """Be the other process, until terminated."""
    with SocketPort(address, beat=lambda: True, gone=lambda: ()) as port:
        run_engine(new_engine(1), port)


def main() -> None:
    """Measure and print tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 32, 256], metavar="N")
    parser.add_argument("--steps", type=int, default=300, metavar="N")
    parser.add_argument("--requests", type=int, default=1000, metavar="N")
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.engine is not None:
        serve_engine(args.engine)
        return
    print(", ".join(f"{name} {value}" for name, value in describe_machine().items()))
    names = ("emit", "encode", "decode", "text", "bytes")
    print(f"{'sequences':>9}{''.join(f'{name:>10}' for name in names)}  per token, times in us")
    for num_sequences in args.sequences:
        print(measure_step(num_sequences, num_steps=args.steps))
    for num_sequences in args.sequences:
        look, send = measure_port(num_sequences, num_steps=args.steps)
        print(
            f"each step of {num_sequences} sequences: {look:.1f} us to look into the inbox,"
            f" {send:.1f} us to send a batch"
        )
    for name, way in (("thread", through_a_thread), ("process", through_a_process)):
        found = sorted(way(args.requests))
        print(
            f"a request through a {name}: median {median(found) * 1e6:.0f} us,"
            f" p99 {found[int(len(found) * 0.99)] * 1e6:.0f} us"
        )


if __name__ == "__main__":
    main()
