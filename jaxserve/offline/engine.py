"""An engine on the caller's thread: requests in, events out, each to whoever asked."""

from collections import deque
from collections.abc import Generator, Iterable

from jaxserve.api.request import FinishReason, Request, TokenEvent
from jaxserve.api.sampling_params import RequestOutputKind
from jaxserve.client.streams import merge
from jaxserve.errors import EngineDeadError, InvalidRequestError, OverloadedError
from jaxserve.frontend.text_engine import TextEngine
from jaxserve.offline.interrupts import uninterrupted


class OfflineEngine:
    """Runs requests as iterators over their events; each step is made by who needs an event.

    has_priorities: whether its scheduler looks at priorities.
    """

    def __init__(self, engine: TextEngine, *, has_priorities: bool) -> None:
        self.engine = engine
        self._has_priorities = has_priorities
        # Where the events of a request go: to the call of `run` that runs it.
        self._inboxes: dict[str, deque[TokenEvent]] = {}
        self._is_dead = False

    @property
    def is_idle(self) -> bool:
        """Whether nothing is left of what it was given."""
        return not (self._inboxes or self.engine.has_work)

    def run(
        self, requests: Iterable[Request], *, max_in_flight: int | None = None
    ) -> Generator[TokenEvent]:
        """Run requests as they are, and yield the events of all of them as they come.

        max_in_flight: requests that the engine has at once, at most. Closing the iterator aborts
        what is unfinished. A request that the engine cannot run ends with an error, and the others
        go on. Raises EngineDeadError once a step has failed.
        """
        if self._has_priorities:
            # The engine's queue is bounded, so it may not see all of them at once.
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
            # The steps under way still hold pages of what was aborted.
            while not (self._inboxes or self._is_dead) and self.engine.has_work:
                self._step()

    def _add(self, request: Request, inbox: deque[TokenEvent]) -> bool:
        """Give a request to the engine; False where its queue is full."""
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
        """Let the engine make a step, and put its events where they are waited for."""
        with uninterrupted():
            try:
                events = self.engine.step()
            except Exception as error:
                self._is_dead = True
                raise EngineDeadError("the engine has failed in a step") from error
            for event in events:
                # There is none for a request that was aborted.
                inbox = self._inboxes.get(event.request_id)
                if inbox is not None:
                    inbox.append(event)


def _refused(request: Request, error: InvalidRequestError) -> list[TokenEvent]:
    """Return the only events of a request that the engine cannot run, one for each choice."""
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
    """Yield events that tell what is new, or all there is so far, or all there is at the end."""
    whole: dict[int, TokenEvent] = {}
    for event in events:
        if kind is RequestOutputKind.DELTA:
            yield event
            continue
        before = [whole[event.index]] if event.index in whole else []
        whole[event.index] = merge([*before, event])
        if kind is RequestOutputKind.CUMULATIVE or event.finish_reason is not None:
            yield whole[event.index]
