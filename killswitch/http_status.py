"""/metrics, /healthz and /readyz of a daemon, on a thread of its own."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

Check = Callable[[], tuple[bool, dict[str, Any]]]
"""Tells whether all is well, with the figures to show."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    timeout = 5  # a client that sends nothing must not hold a thread for ever

    def log_message(self, format: str, *args: Any) -> None:
        """Stay quiet: a probe every second is not news."""


class StatusServer:
    """Serves the three paths until closed.

    Args:
        host: address to listen on.
        port: port, 0 for a free one (see :attr:`port`).
        registry: metrics to show.
        healthy: is the daemon itself alive; a supervisor may restart it when not.
        ready: may it be relied on now.

    Raises:
        OSError: the port is taken.
    """

    def __init__(self, host: str, port: int, *, registry: CollectorRegistry, healthy: Check, ready: Check) -> None:
        metrics = make_wsgi_app(registry)
        checks = {"/healthz": healthy, "/readyz": ready}

        def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            path = environ.get("PATH_INFO", "")
            if path == "/metrics":
                return metrics(environ, start_response)  # type: ignore[no-any-return]  # prometheus_client's is untyped
            if path in checks:
                well, figures = checks[path]()
                body = json.dumps({"ok": well, **figures}, sort_keys=True).encode() + b"\n"
                start_response("200 OK" if well else "503 Service Unavailable", [("Content-Type", "application/json")])
                return [body]
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"there are /metrics, /healthz and /readyz\n"]

        self._server = make_server(host, port, application, server_class=_Server, handler_class=_QuietHandler)
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="http-status", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
