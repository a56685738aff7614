"""Services behind real sockets."""

from __future__ import annotations

from http_service import running

__all__ = ["running"]
