"""Main function of an API process, which handles HTTP, templates, tokenization and streaming.

Several API processes share the listening socket; an idle one accepts. Each answers probes as soon
as it runs, and requests once an engine is ready.
"""

import asyncio
import itertools
import socket
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import msgspec

from jaxserve.chat import AUTO, NONE
from jaxserve.chat.choice import answer_format, find_reasoning_parser, find_tool_parser
from jaxserve.chat.parser import AnswerFormat
from jaxserve.chat.template import ChatTemplate
from jaxserve.client import EngineClient
from jaxserve.client.remote import RemoteClient
from jaxserve.config.server import ServerConfig
from jaxserve.engine.loop import HEARTBEAT_S
from jaxserve.errors import JaxserveError
from jaxserve.grammar import GrammarSandbox, Vocabulary
from jaxserve.observability.logging import configure_logging, get_logger
from jaxserve.observability.metrics import Metrics
from jaxserve.observability.series import Family
from jaxserve.processes.leave import leave
from jaxserve.processes.line import ChildLine, freeze_garbage, ignore_signals
from jaxserve.processes.messages import (
    AllSeries,
    Batches,
    Beat,
    Drain,
    EngineDown,
    EngineLoads,
    EngineSilent,
    EngineUp,
    Failed,
    Hello,
    Listen,
    Ready,
    Scrape,
    Series,
    ServeHttp,
    TakeSeries,
    ToApi,
    Unready,
)
from jaxserve.server.app import AppHooks, create_app
from jaxserve.server.batches.runner import BatchRunner
from jaxserve.server.models import KernelChoice, ServedModel
from jaxserve.server.state import ServerState
from jaxserve.server.transport.run import Server
from jaxserve.tokenization.tokenizer import Tokenizer

log = get_logger(__name__)

SCRAPE_TIMEOUT_S = 3.0

type TokenizerLoader = Callable[[Hello], Tokenizer]


def load_tokenizer(hello: Hello) -> Tokenizer:
    """Load the tokenizer of a model. Raises CheckpointError."""
    return Tokenizer.load(Path(hello.tokenizer), chat_template=hello.chat_template)


def main(
    fd: int,
    load: TokenizerLoader = load_tokenizer,
    *,
    preload: Callable[[], None] = Tokenizer.preload,
) -> int:
    """Serve HTTP until a Drain message; return the exit status.

    fd: file descriptor of this process's end of the control line. load: loads the tokenizer.
    preload: imports the modules that `load` needs; called first.
    """
    ignore_signals()
    # One thread, so that `load` waits for `preload`.
    loading = ThreadPoolExecutor(max_workers=1, thread_name_prefix="jaxserve-tokenizer")
    loading.submit(preload)
    line = ChildLine[ToApi](fd, ToApi)
    first = line.receive()
    assert isinstance(first, ServeHttp), "the first message must be ServeHttp"
    configure_logging(first.log_level, process=first.name)
    with socket.socket(fileno=first.fd) as listener:
        listener.set_inheritable(False)
        try:
            api = ApiProcess(line, first, lambda hello: loading.submit(load, hello))
        except JaxserveError as error:
            # For example a corrupt database; no traceback.
            log.error("the API process cannot start", reason=str(error))
            line.send(Failed(str(error)))
            return 1
        with asyncio.Runner(loop_factory=api.server.config.get_loop_factory()) as runner:
            runner.run(api.run(listener))
    return 0


class ApiProcess:
    """The HTTP server, and its connection to the engine that the supervisor reports."""

    def __init__(
        self,
        line: ChildLine[ToApi],
        first: ServeHttp,
        load: Callable[[Hello], Future[Tokenizer]],
    ) -> None:
        self._line = line
        self._folder = first.folder
        self._load = load
        # max_model_len only bounds the buckets of engine series, which this process does not have.
        metrics = Metrics(max_model_len=1)
        metrics.observe_engine_death(0)  # so that the counter is exported before it first grows
        app = create_app(
            (),
            metrics=metrics,
            config=first.config,
            folder=Path(first.folder),
            num_models=first.num_engines,
            hooks=AppHooks(
                scrape=self._scrape,
                report_batches=lambda trouble: line.send(Batches(trouble)),
            ),
        )
        self._state: ServerState = app.state.server
        self._batches: BatchRunner | None = app.state.batches if first.runs_batches else None
        self.server = Server(app, first.config, batches=self._batches)
        if first.waits:
            self.server.wait()
        # By engine number.
        self._clients = {number: RemoteClient() for number in range(first.num_engines)}
        self._tokenizers: dict[int, asyncio.Future[Tokenizer]] = {}
        self._coming_up: dict[int, asyncio.Task[None]] = {}
        self._numbers = itertools.count()
        self._scrapes: dict[int, asyncio.Future[Sequence[Family]]] = {}

    async def run(self, listener: socket.socket) -> None:
        """Serve at `listener` until a Drain message."""
        loop = asyncio.get_running_loop()

        def obey(message: ToApi) -> None:
            loop.call_soon_threadsafe(self._obey, message)

        self._line.listen(obey, folder=self._folder)
        async with asyncio.TaskGroup() as group:
            beating = group.create_task(self._beat())
            if self._batches is not None:
                self._batches.start()
            await self.server.serve(sockets=[listener])
            beating.cancel()

    async def _beat(self) -> None:
        """Send beats from the event loop."""
        while True:
            self._line.send(Beat())
            await asyncio.sleep(HEARTBEAT_S)

    def _obey(self, message: ToApi) -> None:
        match message:
            case EngineLoads():
                self._begin_tokenizer(message)
            case EngineUp():
                self._begin_tokenizer(message)
                self._coming_up[message.engine] = asyncio.create_task(self._come_up(message))
            case EngineDown():
                if message.engine in self._coming_up:
                    self._coming_up.pop(message.engine).cancel()
                num_requests = self._clients[message.engine].disconnect(message.reason)
                self._state.metrics.observe_engine_death(num_requests)
            case Batches():
                self._state.note_batches(message.trouble)
            case Unready():
                self._state.is_stopping = True
            case EngineSilent():
                self._clients[message.engine].set_silent(message.is_silent)
            case Listen():
                self.server.open()
            case Drain():
                self.server.should_exit = True
            case TakeSeries():
                self._line.send(Series(message.number, self._state.metrics.snapshot()))
            case AllSeries():
                scrape = self._scrapes.pop(message.number, None)
                if scrape is not None:
                    scrape.set_result(message.families)

    def _begin_tokenizer(self, message: EngineLoads | EngineUp) -> None:
        """Start loading the tokenizer of an engine's model, once for all restarts of the engine."""
        if message.engine not in self._tokenizers:
            hello = msgspec.json.decode(message.hello, type=Hello)
            self._tokenizers[message.engine] = asyncio.wrap_future(self._load(hello))

    async def _come_up(self, message: EngineUp) -> None:
        """Start serving the engine's model, or report the failure to the supervisor."""
        try:
            await self._connect(message)
        except TimeoutError:
            self._line.send(Failed("loading the tokenizer timed out; check the disk"))
        except JaxserveError as error:
            self._line.send(Failed(str(error)))
        except Exception:
            log.exception("the API process could not start serving")
            self._line.send(Failed("the API process could not start serving; its log says why"))
        else:
            if self._state.router.is_complete:
                self.server.open()
                self._line.send(Ready())

    async def _connect(self, message: EngineUp) -> None:
        tokenizer = await asyncio.wait_for(
            asyncio.shield(self._tokenizers[message.engine]),
            self._state.config.engine_start_timeout_s,
        )
        freeze_garbage()
        hello = msgspec.json.decode(message.hello, type=Hello)
        client = self._clients[message.engine]
        client.connect(message.address, client=message.client, tokenizer=tokenizer.backend)
        model = served_model(hello, client, tokenizer, self._state.config)
        self._state.router.add(message.engine, model)

    async def _scrape(self) -> Sequence[Family]:
        """Return the series of all processes; only those of this one if the supervisor is busy."""
        number = next(self._numbers)
        scrape = self._scrapes[number] = asyncio.get_running_loop().create_future()
        self._line.send(Scrape(number))
        try:
            return await asyncio.wait_for(scrape, SCRAPE_TIMEOUT_S)
        except TimeoutError:
            log.warning("timed out collecting the series of the other processes")
            return self._state.metrics.snapshot()
        finally:
            self._scrapes.pop(number, None)


def served_model(
    hello: Hello, client: EngineClient, tokenizer: Tokenizer, config: ServerConfig
) -> ServedModel:
    """Return the model of an engine, ready for requests."""
    chat = None
    if tokenizer.chat_template is not None:
        content_format = config.chat_template_content_format
        chat = ChatTemplate(
            tokenizer, defaults=config.chat_template_kwargs, content_format=content_format
        )
        if not chat.reads_content(content_format):
            log.warning(
                "the chat template does not read content of this format", format=content_format
            )
    return ServedModel(
        names=hello.names,
        created=hello.created,
        client=client,
        tokenizer=tokenizer,
        chat=chat,
        answers=AnswerFormat() if chat is None else _answers(chat, config),
        trusts_templates=config.trust_request_chat_template,
        max_model_len=hello.max_model_len,
        vocab_size=hello.vocab_size,
        grammars=GrammarSandbox(Vocabulary(lambda: tokenizer.backend, vocab_size=hello.vocab_size)),
        max_logprobs=hello.max_logprobs,
        logprobs_mode=hello.logprobs_mode,
        pooling=hello.pooling,
        defaults=hello.defaults,
        has_priorities=hello.has_priorities,
        max_queued_requests=hello.max_queued_requests,
        fingerprint=hello.fingerprint,
        kernels={
            op: KernelChoice(backend=backend, refusals=refusals)
            for op, (backend, refusals) in hello.kernels.items()
        },
    )


def _answers(chat: ChatTemplate, config: ServerConfig) -> AnswerFormat:
    """Choose the parsers of reasoning and tool calls, and log the choice."""
    tools = config.tool_call_parser if config.enable_auto_tool_choice else NONE
    if tools == AUTO:
        tools = find_tool_parser(chat)
    reasoning = config.reasoning_parser
    if reasoning == AUTO:
        reasoning = find_reasoning_parser(chat)
    log.info("chose parsers", tool_calls=tools, reasoning=reasoning)
    return answer_format(tools=tools, reasoning=reasoning)


if __name__ == "__main__":
    leave(main(int(sys.argv[1])))
