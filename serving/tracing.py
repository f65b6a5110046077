"""OpenTelemetry spans of a request's way through the engine: how long it waited, was read, and was answered."""

from __future__ import annotations

from time import time_ns

from opentelemetry.trace import Tracer, get_current_span, set_span_in_context

from serving.engine.protocol import EngineAnswer, EngineRequest


class Spans:
    """Spans of answered requests, below the HTTP request's; their attributes hold counts and no text.

    The engine tells how long each part took when it is done, so all of them are made then; none where the HTTP
    request's span was left out of the sample, so that they would go nowhere.
    """

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def observe(self, request: EngineRequest, answer: EngineAnswer) -> None:
        around = get_current_span().get_span_context()
        if around.is_valid and not around.trace_flags.sampled:
            return
        total = answer.queue_seconds + answer.compute_seconds
        end = time_ns()
        arrived = end - _nanoseconds(total)
        whole = self._tracer.start_span(
            "engine.request",
            start_time=arrived,
            attributes={
                "gen_ai.request.model": request.adapter or "base",
                "gen_ai.request.max_tokens": request.max_tokens,
                "gen_ai.usage.input_tokens": answer.prompt_tokens,
                "gen_ai.usage.output_tokens": answer.answer_tokens,
                "neuroweaver.cached_tokens": answer.cached_tokens,
                "neuroweaver.forced_tokens": answer.forced_tokens,
            },
        )
        context = set_span_in_context(whole)
        times = (0.0, answer.queue_seconds, max(answer.first_token_seconds, answer.queue_seconds), total)
        for name, began, ended in zip(("queue", "prefill", "decode"), times, times[1:], strict=False):
            span = self._tracer.start_span(f"engine.{name}", context, start_time=arrived + _nanoseconds(began))
            span.end(arrived + _nanoseconds(max(began, ended)))
        whole.end(end)


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
