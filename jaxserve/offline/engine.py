"""An engine on the caller's thread. Each call of `run` gets the events of its own requests."""

from collections import deque
from collections.abc import Generator, Iterable

from jaxserve.api.request import FinishReason, Request, TokenEvent
from jaxserve.api.sampling_params import RequestOutputKind
from jaxserve.client.streams import merge
from jaxserve.errors import EngineDeadError, InvalidRequestError, OverloadedError
from jaxserve.frontend.text_engine import TextEngine
from jaxserve.offline.interrupts import uninterrupted


class OfflineEngine:
    """Runs requests as iterators over their events. Whichever iterator needs an event makes a step.

    has_priorities: whether the scheduler uses priorities.
    """

    def __init__(self, engine: TextEngine, *, has_priorities: bool) -> None:
        self.engine = engine
        self._has_priorities = has_priorities
        # Event queue of the call of `run` that runs the request, by request id.
        self._inboxes: dict[str, deque[TokenEvent]] = {}
        self._is_dead = False

    @property
    def is_idle(self) -> bool:
        """Whether the engine has no work left."""
        return not (self._inboxes or self.engine.has_work)

    def run(
        self, requests: Iterable[Request], *, max_in_flight: int | None = None
    ) -> Generator[TokenEvent]:
        """Run requests, and yield the events of all of them as they arrive.

        max_in_flight: maximum number of requests in the engine at once. Closing the iterator aborts
        unfinished requests. A request that the engine cannot run ends with an error, and the others
        continue. Raises EngineDeadError once a step has failed.
        """
        if self._has_priorities:
            # The engine's queue is bounded, so add the requests gradually.
            requests = sorted(requests, key=lambda request: request.priority)
        waiting = deque(requests)
        unfinished: set[str] = set()
        inbox: deque[TokenEvent] = deque()
        try:
            while waiting or unfinished:
                while waiting and (max_in_flight is None or len(unfinished) < max_in_flight):
                    if not self._add(waiting[0], inbox):
                        break
                    unfinished.add(waiting.popleft().id)
                if not inbox:
                    self._step()
                while inbox:
                    event = inbox.popleft()
                    if event.request_finished:
                        unfinished.remove(event.request_id)
                        del self._inboxes[event.request_id]
                    yield event
        finally:
            for request_id in unfinished:
                del self._inboxes[request_id]
                self.engine.abort(request_id)
            # Steps in flight still use pages of the aborted requests.
            while not (self._inboxes or self._is_dead) and self.engine.has_work:
                self._step()

    def _add(self, request: Request, inbox: deque[TokenEvent]) -> bool:
        """Add a request to the engine; return False if its queue is full."""
        if self._is_dead:
            raise EngineDeadError("the engine has failed before; make a new LLM")
        with uninterrupted():
            try:
                self.engine.add(request)
            except OverloadedError:
                return False
            except InvalidRequestError as error:
                inbox += _refused(request, error)
            self._inboxes[request.id] = inbox
        return True

    def _step(self) -> None:
        """Make a step, and pass its events to the calls of `run` that wait for them."""
        with uninterrupted():
            try:
                events = self.engine.step()
            except Exception as error:
                self._is_dead = True
                raise EngineDeadError("the engine has failed in a step") from error
            for event in events:
                # An aborted request has no queue any more.
                inbox = self._inboxes.get(event.request_id)
                if inbox is not None:
                    inbox.append(event)


def _refused(request: Request, error: InvalidRequestError) -> list[TokenEvent]:
    """Return the error events of a request that the engine cannot run, one for each choice."""
    last = request.params.n - 1
    return [
        TokenEvent(
            request_id=request.id,
            index=index,
            num_prompt_tokens=len(request.prompt_ids),
            finish_reason=FinishReason.ERROR,
            error=error.message,
            error_param=error.param,
            request_finished=index == last,
        )
        for index in range(request.params.n)
    ]


def of_kind(events: Iterable[TokenEvent], kind: RequestOutputKind) -> Generator[TokenEvent]:
    """Yield events with new, cumulative or final output, as `output_kind` says."""
    whole: dict[int, TokenEvent] = {}
    for event in events:
        if kind is RequestOutputKind.DELTA:
            yield event
            continue
        before = [whole[event.index]] if event.index in whole else []
        whole[event.index] = merge([*before, event])
        if kind is RequestOutputKind.CUMULATIVE or event.finish_reason is not None:
            yield whole[event.index]
