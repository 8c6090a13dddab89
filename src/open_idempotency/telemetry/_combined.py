"""Several listeners as one."""

from __future__ import annotations

import inspect
import logging

from open_idempotency.events import Event, Listener, Telemetry
from open_idempotency.exceptions import ConfigurationError

_logger = logging.getLogger("open_idempotency")


def combine(*listeners: Listener) -> Listener:
    """One listener that calls several, in order. If one raises, the error is logged and the others are still called.

    ``on_event=combine(prometheus(), opentelemetry(), mine)``. Raises ``ConfigurationError`` without a listener, and for
    one that is not callable. Since 0.1.
    """
    if not listeners:
        raise ConfigurationError("combine: no listener was given; pass at least one")
    for each in listeners:
        if not callable(each) or inspect.iscoroutinefunction(each):
            raise ConfigurationError(f"combine: expected plain callables that take an event, got {each!r}")
    if any(isinstance(each, Telemetry) for each in listeners):
        return _CombinedTelemetry(listeners)
    return _Combined(listeners)


class _Combined:
    def __init__(self, listeners: tuple[Listener, ...]) -> None:
        self._listeners = listeners

    def __call__(self, event: Event) -> None:
        for each in self._listeners:
            try:
                each(event)
            except Exception:
                _logger.exception("an on_event listener raised on %s", type(event).__name__)


class _CombinedTelemetry(_Combined, Telemetry):
    def __init__(self, listeners: tuple[Listener, ...]) -> None:
        super().__init__(listeners)
        self._measuring = [each for each in listeners if isinstance(each, Telemetry)]

    def backend_called(self, verb: str, seconds: float) -> None:
        for each in self._measuring:
            try:
                each.backend_called(verb, seconds)
            except Exception:
                _logger.exception("backend_called() of an on_event listener raised on %s", verb)

    def attempts_changed(self, by: int) -> None:
        for each in self._measuring:
            try:
                each.attempts_changed(by)
            except Exception:
                _logger.exception("attempts_changed() of an on_event listener raised")

    def traceparent(self) -> str:
        return next((found for each in self._measuring if (found := each.traceparent())), "")
