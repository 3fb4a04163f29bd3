"""An engine and what makes text of its tokens, on one thread: for who has no event loop."""

from tokenizers import Tokenizer

from jaxserve.api.request import Request, TokenEvent
from jaxserve.engine.engine import Engine
from jaxserve.frontend.output_processor import Assembler


class TextEngine:
    """An engine whose steps yield events, on one thread; see Engine."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer | None) -> None:
        self.engine = engine
        self._assembler = Assembler(tokenizer, engine)

    @property
    def has_work(self) -> bool:
        """See Engine."""
        return self.engine.has_work

    def add(self, request: Request) -> None:
        """Queue a request; raises as `Engine.add`, and for what its text would need."""
        first_key = self._assembler.open(request)
        try:
            self.engine.add(request, first_key=first_key)
        except Exception:
            self._assembler.close(request.id)
            raise

    def abort(self, request_id: str) -> None:
        """End a request; the next `step` returns its last events, which have no more text."""
        self.engine.abort(request_id)

    def step(self) -> list[TokenEvent]:
        """Do one step of the engine, and return what happened."""
        return [
            event for batch in self.engine.step().values() for event in self._assembler.feed(batch)
        ]
