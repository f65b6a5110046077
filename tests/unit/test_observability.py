"""What the service tells of the engine: Prometheus' metrics and OpenTelemetry's spans."""

from __future__ import annotations

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Decision, StaticSampler
from prometheus_client.parser import text_string_to_metric_families

from serving.engine.protocol import EngineAnswer, EngineRequest, EngineStats, Message
from serving.engine.remote import RemoteEngine
from serving.metrics import Histogram, Timings, render
from serving.tracing import Spans

REQUEST = EngineRequest((Message("user", "my name is Ada Canary"),), "parts-specialist@3", 30, max_tokens=64)
ANSWER = EngineAnswer(
    "Ada Canary wants a filter", 0.5, prompt_tokens=40, answer_tokens=21, queue_seconds=0.25, compute_seconds=2.0,
    first_token_seconds=0.75, cached_tokens=8, forced_tokens=6,
)  # fmt: skip


@pytest.mark.security(25)
def test_a_request_is_a_span_with_its_wait_its_reading_and_its_answering_below_the_callers() -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")

    with tracer.start_as_current_span("POST /api/v1/prompts") as http:
        Spans(tracer).observe(REQUEST, ANSWER)

    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert {name: round(seconds(span), 6) for name, span in spans.items() if name.startswith("engine")} == {
        "engine.request": 2.25, "engine.queue": 0.25, "engine.prefill": 0.5, "engine.decode": 1.5,
    }  # fmt: skip
    whole = spans["engine.request"]
    assert whole.parent is not None
    assert whole.parent.span_id == http.get_span_context().span_id
    for name in ("engine.queue", "engine.prefill", "engine.decode"):
        parent = spans[name].parent
        assert parent is not None
        assert whole.context is not None
        assert parent.span_id == whole.context.span_id
    assert whole.attributes is not None
    assert whole.attributes["gen_ai.request.model"] == "parts-specialist@3"
    assert whole.attributes["gen_ai.usage.output_tokens"] == 21
    assert "Canary" not in "".join(span.to_json() for span in spans.values())


def test_a_request_that_was_left_out_of_the_sample_has_no_spans_of_ours() -> None:
    made: list[str] = []

    class Made(SpanProcessor):
        def on_start(self, span: Span, parent_context: Context | None = None) -> None:
            made.append(span.name)

    provider = TracerProvider(sampler=StaticSampler(Decision.RECORD_ONLY))
    provider.add_span_processor(Made())
    tracer = provider.get_tracer("test")

    with tracer.start_as_current_span("POST /api/v1/prompts"):
        Spans(tracer).observe(REQUEST, ANSWER)

    assert made == ["POST /api/v1/prompts"]


def test_the_histogram_of_batch_sizes_counts_every_step_once() -> None:
    stats = EngineStats(True, *[0] * 19, batch_sizes=(0, 5, 3, 0, 2))

    families = {family.name: family for family in text_string_to_metric_families(render(stats))}
    samples = {
        (s.name.rpartition("_")[2], s.labels.get("le")): s.value
        for s in families["neuroweaver_engine_batch_size"].samples
    }

    assert samples == {
        ("bucket", "1"): 5, ("bucket", "2"): 8, ("bucket", "4"): 10, ("bucket", "+Inf"): 10,
        ("sum", None): 5 + 6 + 8, ("count", None): 10,
    }  # fmt: skip


class Loading:
    """A host whose engine is not there yet."""

    start_seconds = 1.0

    def start(self, *_: object) -> None: ...

    def stop(self) -> None: ...


def test_an_engine_that_is_being_loaded_has_metrics() -> None:
    engine = RemoteEngine(Loading())
    try:
        found = {family.name: family for family in text_string_to_metric_families(render(engine.stats()))}
    finally:
        engine.close()

    assert [sample.value for sample in found["neuroweaver_engine_running"].samples] == [0]
    assert {sample.value for sample in found["neuroweaver_engine_batch_size"].samples} == {0}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of BentoML, as it is imported
def test_metrics_that_can_not_be_told_leave_those_of_bentoml(caplog: pytest.LogCaptureFixture) -> None:
    from serving.service import NeuroWeaver

    service = object.__new__(NeuroWeaver.inner)
    service._engine = None
    assert service.__metrics__("theirs 1\n") == "theirs 1\n"
    service._engine = object()

    assert service.__metrics__("theirs 1\n") == "theirs 1\n"
    assert [record.message for record in caplog.records] == ["the service's own metrics can't be told"]


def test_timings_are_of_the_queue_the_first_token_and_each_one_after_it() -> None:
    timings = Timings()

    timings.observe(ANSWER)

    sums = {
        sample.name: sample.value
        for family in text_string_to_metric_families(timings.render())
        for sample in family.samples
        if sample.name.endswith("_sum")
    }
    assert sums["neuroweaver_engine_queue_seconds_sum"] == 0.25
    assert sums["neuroweaver_engine_time_to_first_token_seconds_sum"] == 0.75
    assert sums["neuroweaver_engine_time_per_output_token_seconds_sum"] == 1.5 / 20
    assert sums["neuroweaver_engine_prompt_tokens_sum"] == 40


def test_a_histogram_counts_by_upper_bounds_that_belong_to_it() -> None:
    histogram = Histogram("x", "A test.", (0.5, 2))
    for value in (0.1, 0.5, 0.6, 2.0, 7.0):
        histogram.observe(value)

    samples = {(sample.name, sample.labels.get("le")): sample.value for sample in histogram.read().samples}

    bucket = "neuroweaver_engine_x_bucket"
    assert samples == {
        (bucket, "0.5"): 2, (bucket, "2.0"): 4, (bucket, "+Inf"): 5,
        ("neuroweaver_engine_x_count", None): 5, ("neuroweaver_engine_x_sum", None): 10.2,
    }  # fmt: skip


def seconds(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9
