"""The HTTP service: ``POST /predict``, ``GET /info``, ``GET /health``; the model is loaded once per device.

    curl -F image=@case.nii.gz http://127.0.0.1:8000/predict -o answer.zip

Requests and answers are described in docs/how-to/serve-a-model.md.
"""

import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

from medmamba.command_options import ServeOptions
from medmamba.dicom.codes import check_codes, read_codes
from medmamba.errors import InputError, need_packages
from medmamba.inference.joint import Models
from medmamba.inference.predictor import Predictor

ALL_UPLOADS = 4
"""Uploads of the largest size that may lie on the disk at once."""


def run_service(
    model: Models,
    options: ServeOptions | None = None,
    *,
    on_message: Callable[[str], None] = lambda line: None,
    **changes: Any,
) -> None:
    """Serve until SIGINT or SIGTERM; ``changes`` are single fields of the options by name.

    A running case may take some seconds more, every other client is told at once. Raises ConfigError when the extra
    ``serve`` is missing, InputError when the address cannot be used.
    """
    options = ServeOptions.of(options, **changes)
    need_packages("Serving needs", ("fastapi", "uvicorn", "python_multipart"), "serve")
    if options.codes is not None:
        check_codes(options.codes)
    listening = _socket(options.host, options.port)  # a port that is taken is reported before a model is loaded
    try:
        predictors = [Predictor(model, options.of_predictor(device)) for device in options.devices]
        read_codes(options.codes, list(predictors[0].provenance().labels))
        from medmamba.serving.connections import make_server
        from medmamba.serving.limits import ServiceLimits
        from medmamba.serving.routes import HOSTS, Service

        address, taken = listening.getsockname()[:2]
        local = ipaddress.ip_address(address).is_loopback
        if not local:
            on_message(f"Warning: {address} can be reached by others, and there is no login. Put a proxy in front.")
        bytes_of_one = options.upload_mb * 2**20
        limits = ServiceLimits(bytes_of_one, ALL_UPLOADS * bytes_of_one, waiting=options.waiting)
        hosts = HOSTS if local else ("*",)
        service = Service(predictors, limits, hosts=hosts, codes=options.codes, on_message=on_message)
        on_message(f"Listening on http://{address}:{taken}: POST /predict, GET /info, GET /health")
        try:
            make_server(service.app, limits, service.ending).run([listening])
        finally:
            if service.stuck:  # between two patches only can a case be ended
                on_message("A case that was still running was dropped.")
                sys.stdout.flush()
                os._exit(128 + signal.SIGTERM)
    finally:
        listening.close()


def _socket(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(64)  # whoever reads the line with the address can call at once
    except OSError as error:
        raise InputError(f"{host}:{port}: cannot listen there ({error.strerror}). Choose another --port.") from error
    return made
