"""An engine together with its output processor, for callers without an event loop."""

from tokenizers import Tokenizer

from jaxserve.api.request import Request, TokenEvent
from jaxserve.engine.engine import Engine
from jaxserve.frontend.output_processor import OutputProcessor


class TextEngine:
    """Engine whose steps return events with text. Runs on one thread; see Engine."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer | None) -> None:
        self.engine = engine
        self._processor = OutputProcessor(tokenizer, engine)

    @property
    def has_work(self) -> bool:
        """See Engine."""
        return self.engine.has_work

    def add(self, request: Request) -> None:
        """Queue a request. Raises the errors of `Engine.add` and `OutputProcessor.open`."""
        first_key = self._processor.open(request)
        try:
            self.engine.add(request, first_key=first_key)
        except Exception:
            self._processor.close(request.id)
            raise

    def abort(self, request_id: str) -> None:
        """End a request. The next `step` returns its final events, without further text."""
        self.engine.abort(request_id)

    def step(self) -> list[TokenEvent]:
        """Run one step of the engine, and return its events."""
        return [
            event for batch in self.engine.step().values() for event in self._processor.feed(batch)
        ]
