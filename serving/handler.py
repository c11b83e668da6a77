"""TorchServe's handler: a request comes in, its answer goes out piece by piece; the only file that knows `ts`.

One of the two edges that catch the error tree. What is wrong with a request is found before the first byte of the answer and
becomes `{"error": class, "message": sentence}` with the status of its class. What goes wrong later can only cut the connection:
a chunked answer without its end, a zip without its directory.

An archive's copy of this file lies at its root, beside the package `serving`; TorchServe wants exactly one class in it. The
archive's model-config.yaml must say `batchSize: 1`, because the answers of a batch can only be streamed together.
"""

import json
import logging
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

import torch
from ts.handler_utils.utils import send_intermediate_predict_response

from serving.archive import read_archive
from serving.errors import RequestError, ServerError, StemwrightError, UnsupportedAudio
from serving.request import Request
from serving.processor import available_cpus
from serving.separator import Separator
from serving.settings import Settings

logger = logging.getLogger(__name__)


class Handler:
    """A separator in a worker of TorchServe."""

    def initialize(self, context: Any) -> None:
        """Load the unpacked archive. Raises ArchiveError where it is damaged; TorchServe then ends the worker."""
        settings = Settings.from_env()
        archive = read_archive(Path(context.system_properties["model_dir"]))
        gpu = context.system_properties["gpu_id"]
        device = settings.device or (None if gpu is None else f"cuda:{gpu}")
        torch.set_num_threads(min(torch.get_num_threads(), max(1, available_cpus() // settings.workers)))
        self.separator = Separator(archive.spec, archive.network(), device)
        precision = "bfloat16" if self.separator.bfloat16 else "float32"
        logger.info("separating on %s, %d threads, %s", self.separator.device, torch.get_num_threads(), precision)
        self.max_duration_s = settings.max_duration_s
        self.facts = {"weights_sha256": archive.weights_sha256, "origin": archive.origin, **archive.spec.to_json()}

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[Any]:
        """Answer the one request of a batch. All but the last, empty piece of a good answer has been sent on return."""
        headers = request_headers(context)
        if headers.get("describe") == "True":
            return [self.facts]
        started = False
        try:
            request = Request.from_headers(headers, self.separator.spec.stems)
            for piece in request.answer(self.separator, audio_of(data[0]), self.max_duration_s):
                if not started:
                    set_head(context, HTTPStatus.OK, request.content_type)
                    context.set_response_header(0, "Content-Disposition", f'attachment; filename="{request.file_name}"')
                    started = True
                send_intermediate_predict_response([piece], context.request_ids, "Intermediate", 200, context)
        except Exception as error:
            if started:  # TorchServe logs it and cuts the connection
                raise
            told = for_the_client(error)
            set_head(context, HTTPStatus(told.status), "application/json")
            return [json.dumps({"error": type(told).__name__, "message": str(told)}).encode()]
        return [b""]


def request_headers(context: Any) -> dict[str, str]:
    """The headers by their names in small letters, which HTTP/2 proxies make of them. The dictionaries that TorchServe puts
    among them for the parts of a form are left out."""
    headers = context.get_all_request_header(0)
    return {name.lower(): value for name, value in headers.items() if isinstance(value, str)}


def set_head(context: Any, status: HTTPStatus, content_type: str) -> None:
    context.set_response_status(status.value, status.phrase, 0)
    context.set_response_content_type(0, content_type)


def audio_of(fields: Mapping[str, Any]) -> bytes | bytearray:
    """The bytes sent as the body or as the one field of a form."""
    if len(fields) > 1:
        raise RequestError(f"the form has the fields {', '.join(fields)}: send one, with the audio")
    audio = next(iter(fields.values()), b"")
    if not isinstance(
        audio, bytes | bytearray
    ):  # where TorchServe decodes text and JSON, as it does elsewhere than here
        raise UnsupportedAudio("the body is text and no audio: send the file itself, with an audio Content-Type")
    return audio


def for_the_client(error: Exception) -> StemwrightError:
    """What to say of an error. A bug is logged, and no more is said than that it is one."""
    if isinstance(error, StemwrightError):
        return error
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        logger.error("out of memory: %s", error)
        return ServerError("the server has too little memory left for this song: try again later, or send it in parts")
    logger.error("a request failed", exc_info=error)
    return StemwrightError("the server made a mistake: its log says which")
