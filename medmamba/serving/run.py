"""The service: a model loaded once per device that answers requests until it is stopped."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from medmamba.errors import ConfigError, InputError
from medmamba.serving.options import ServeOptions


def run_service(
    model: str | Path,
    options: ServeOptions | None = None,
    *,
    on_message: Callable[[str], None] = lambda line: None,
    **changes: Any,
) -> None:
    """Serve until SIGINT or SIGTERM; ``changes`` are single fields of the options by name.

    Raises ConfigError when the extra ``serve`` is missing, InputError when the address cannot be used.
    """
    options = ServeOptions.of(options, **changes)
    missing = [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]
    if missing:
        raise ConfigError(f"Serving needs {', '.join(missing)}. Install with: pip install 'medmamba[serve]'.")
    import uvicorn

    from medmamba.inference.predictor import Predictor
    from medmamba.serving.app import HOSTS, ServiceLimits, make_app

    listening = _socket(options.host, options.port)  # a port that is taken is reported before a model is loaded
    try:
        predictors = [Predictor(model, options.of_predictor(device)) for device in options.devices]
        address, taken = listening.getsockname()[:2]
        if not ipaddress.ip_address(address).is_loopback:
            on_message(f"Warning: {address} can be reached by others, and there is no login. Put a proxy in front.")
        hosts = HOSTS if ipaddress.ip_address(address).is_loopback else ("*",)
        app = make_app(
            predictors, ServiceLimits(upload_bytes=options.upload_mb * 2**20, waiting=options.waiting), hosts=hosts
        )
        on_message(f"Listening on http://{address}:{taken}: POST /predict, GET /info, GET /health")
        # no access log: the names of files would stand in it
        uvicorn.Server(uvicorn.Config(app, access_log=False, log_level="warning")).run([listening])
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
