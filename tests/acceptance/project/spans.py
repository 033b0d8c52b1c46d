"""OpenTelemetry as a user's worker sets it up, with a file in place of a collector."""

import json
import os

from celery import signals

FILE = json.loads(os.environ["AIOABORT_TEST_PROJECT"]).get("test_spans")


@signals.worker_init.connect
def export_spans(**_: object) -> None:
    """Write each span into the file, a line for each, if there is one.

    Those of the main process, too, and the pool's processes inherit it.
    """
    if FILE is None:
        return
    from opentelemetry import trace  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import (  # noqa: PLC0415
        ConsoleSpanExporter,
        SimpleSpanProcessor,
    )

    exporter = ConsoleSpanExporter(
        out=open(FILE, "a"),  # noqa: PTH123, SIM115 - for as long as the process lives
        formatter=lambda span: span.to_json(indent=None) + "\n",
    )
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
