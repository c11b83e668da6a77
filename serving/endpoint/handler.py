"""TorchServe's handler: takes a request, sends its answer piece by piece. Only this file knows `ts`.

It is one of the two edges that catch the error tree, through `Answer`. In an archive a copy of this file lies at the root,
beside the package `serving`; TorchServe requires exactly one class in it. The archive's model-config.yaml must say
`batchSize: 1`, because answers of a batch can only be streamed together. It must not say `continuousBatching`: TorchServe
0.12 would notice callers who hang up, but keep all workers but one waiting and ask for a description over and over.
"""

import logging
import time
from collections.abc import Mapping
from contextlib import nullcontext
from http import HTTPStatus
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from ts.handler_utils.utils import send_intermediate_predict_response
from ts.metrics.caching_metric import CachingMetric
from ts.metrics.metric_type_enum import MetricTypes

from serving.audio.encoding import AUDIO_TYPES
from serving.endpoint import metrics, registered
from serving.endpoint.answer import CALLER_GONE, Answer, window_count
from serving.endpoint.disconnects import Caller
from serving.endpoint.drain import Drain
from serving.endpoint.incoming import Bounds
from serving.errors import ServerError
from serving.model.archive import read_archive
from serving.model.device import device_of
from serving.model.processor import available_cpus
from serving.model.separator import Separator
from serving.model.spec import ModelSpec, Quality
from serving.settings import Settings, cache_folder
from serving.version import version

logger = logging.getLogger(__name__)

EXPOSED_HEADERS = "Content-Disposition, Retry-After, X-Correlation-Id, X-Error, X-Model-Version, X-Model-Weights"
"""The headers of an answer that a page of another origin may read."""


class Handler:
    """A separator in a worker of TorchServe."""

    def initialize(self, context: Any) -> None:
        """Load the unpacked archive and separate a second of noise; a worker that cannot do this is not ready.

        Raises ArchiveError if the archive is damaged; TorchServe then ends the worker.
        """
        self.settings = Settings.from_env()
        folder = Path(context.system_properties["model_dir"])
        archive = read_archive(folder)
        gpu = context.system_properties["gpu_id"]
        device = device_of(self.settings.device, "cpu" if gpu is None else f"cuda:{gpu}")
        torch.set_num_threads(min(torch.get_num_threads(), max(1, available_cpus() // self.settings.workers)))
        self.separator = Separator.open(folder, device, self.settings.engine, cache_folder())
        logger.info(
            "separating on %s, %d threads, %s",
            self.separator.device,
            torch.get_num_threads(),
            self.separator.engine.description,
        )
        rate_hz = archive.spec.audio.sample_rate_hz
        self.separator.separate(np.random.default_rng(0).standard_normal((2, rate_hz)).astype(np.float32), rate_hz)
        Bounds.of(self.settings)
        self.registered = registered.read_number(folder)
        self.facts = facts_of(archive.spec, archive.weights_sha256)
        self.own_facts = {
            **self.facts,
            "origin": archive.origin,
            "device": str(self.separator.device),
            **archive.spec.to_json(),
        }
        self.drain = Drain(Path(self.settings.run_dir)) if self.settings.run_dir else None

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[Any]:
        """Answer the one request of a batch. Streams every piece itself; returns only the empty last one."""
        headers = request_headers(context)
        if "describe" in headers:
            context.set_response_content_type(0, "application/json")
            return [self.own_facts if by_management(data[0], headers) else self.facts]
        with self.drain.working() if self.drain else nullcontext():
            answer = Answer(context.get_request_id(), headers, self.settings.request_timeout_s)
            if self.drain and self.drain.begun:
                answer.refuse(ServerError("the server is stopping: try again, there may be another"))
            else:
                answer.separate(self.separator, data[0], Bounds.of(self.settings))
            if self.settings.cors_origins:
                answer.headers["Access-Control-Expose-Headers"] = EXPOSED_HEADERS
            answer.headers["X-Model-Weights"] = self.separator.weights_sha256[:12]
            if self.registered:
                answer.headers[registered.HEADER] = self.registered
            status: int = HTTPStatus.INTERNAL_SERVER_ERROR
            try:
                piece, status = self.send(answer, context)
            finally:  # TorchServe logs an error after the first piece and cuts the connection
                answer.close()
                logger.info(answer.record(status))
                self.count(answer, status, context)
            return [piece]

    def send(self, answer: Answer, context: Any) -> tuple[bytes, int]:
        """Send all pieces but the last; return that one with the final status."""
        piece = answer.next_piece()
        set_head(context, answer)
        run_dir = self.settings.run_dir
        caller = Caller(Path(run_dir), self.settings.http_port, time.time()) if run_dir else None
        while piece and answer.status == HTTPStatus.OK:
            if caller and caller.has_gone():
                return b"", CALLER_GONE
            send_intermediate_predict_response([piece], context.request_ids, "Intermediate", 200, context)
            piece = answer.next_piece()
        return piece, answer.status

    def count(self, answer: Answer, status: int, context: Any) -> None:
        count(context, metrics.REQUESTS, 1, str(int(status)))
        labels = (self.separator.spec.architecture, self.facts["weights_sha256"], str(self.separator.device))
        count(context, metrics.MODEL_INFO, 1, *labels)
        audio, seconds = answer.work.audio, answer.work.seconds
        if audio is not None:
            for part, spent in seconds.items():
                count(context, metrics.WORK_S, spent, part)
        if audio is not None and status == HTTPStatus.OK:
            audio_s = audio.samples / audio.rate_hz
            count(context, metrics.AUDIO_S, audio_s)
            count(context, metrics.WINDOWS, window_count(audio_s, self.separator.spec.chunk))
            count(context, metrics.REAL_TIME_FACTOR, sum(seconds.values()) / audio_s)


def facts_of(spec: ModelSpec, weights_sha256: str) -> dict[str, Any]:
    """The public facts of a model."""
    return {
        "name": spec.architecture,
        "version": version(),
        "weights_sha256": weights_sha256,
        "stems": spec.stems,
        "offered": spec.offered,
        "sample_rate_hz": spec.audio.sample_rate_hz,
        "formats": list(AUDIO_TYPES),
        "qualities": get_args(Quality),
    }


def by_management(fields: Mapping[str, Any], headers: Mapping[str, str]) -> bool:
    """True for a request to the management port.

    On the public port TorchServe adds a body, even an empty one, on every route, unless the Content-Type is that of a form.
    """
    return not fields and "content-type" not in headers


def request_headers(context: Any) -> dict[str, str]:
    """Headers by lower-case name, as HTTP/2 proxies send them. Drops the dictionaries that TorchServe adds for parts of a
    form."""
    headers = context.get_all_request_header(0)
    return {name.lower(): value for name, value in headers.items() if isinstance(value, str)}


def set_head(context: Any, answer: Answer) -> None:
    context.set_response_status(answer.status.value, answer.status.phrase, 0)
    context.set_response_content_type(0, answer.content_type)
    for name, value in answer.headers.items():
        context.set_response_header(0, name, value)


def count(context: Any, metric: metrics.Metric, value: float, *labels: str) -> None:
    """Add to a metric, which TorchServe reads from the worker's output. Does nothing without one, as in tests."""
    if context.metrics is not None:
        CachingMetric(metric.name, metric.unit, list(metric.labels), MetricTypes(metric.kind)).add_or_update(
            value, list(labels)
        )
