"""The one HTTP server of monitoring: a table from path to handler, who may ask, and nothing else.

Metrics, page and JSON share it, so what protects one protects all. It listens on this machine only unless
told otherwise; elsewhere a token is asked for, because a cluster's network is full of strangers. Only GET and
HEAD are answered: nothing here changes anything.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import re
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

TEXT = "text/plain; charset=utf-8"
COOKIE = "univip_token"
TIMEOUT_S = 30.0  # of a client that neither asks nor reads
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    # Whatever a run is called: no script but our own files, and no other site.
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What a handler is asked.

    Attributes:
        path: Decoded, without the query: beware of `..` before it becomes a file name.
        query: Its parameters, decoded; of repeated ones the last.
        accept: What the client would like to read.
    """

    path: str
    query: Mapping[str, str]
    accept: str = ""


@dataclass(frozen=True)
class Response:
    """What a handler answers; a body of several pieces is sent piece by piece."""

    body: bytes | Iterable[bytes]
    content_type: str = TEXT
    status: int = HTTPStatus.OK
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Request], Response]
# By path; one that ends in a slash also takes every longer path that has no entry of its own, except "/".
Routes = Mapping[str, Handler]


class Server(ThreadingHTTPServer):
    """Answers by the table; start it with `start` or `serve_forever`, end it with `shutdown` and `close`."""

    daemon_threads = True

    def __init__(self, host: str, port: int, routes: Routes, token: str = "") -> None:
        """Take the address.

        Args:
            host: Address to listen at.
            port: 0 takes a free one; `server_port` says which.
            routes: What is served.
            token: Asked of every request but `/healthz`, unless empty.

        Raises:
            OSError: If the address cannot be taken.
            ValueError: If other machines could ask and no token is asked of them.
        """
        if not token and not is_loopback(host):
            raise ValueError(f"a server at {host} needs a token: other machines reach it")
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.routes = routes
        self.token = token
        super().__init__((host, port), _Connection)

    def start(self) -> None:
        """Serve in a background thread."""
        threading.Thread(target=self.serve_forever, name="server", daemon=True).start()

    def server_bind(self) -> None:
        """Without asking a name server who this machine is, as the standard one does."""
        super(ThreadingHTTPServer, self).server_bind()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left is no event."""
        _logger.debug("connection of %s ended", client_address, exc_info=True)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Connection(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "univip", ""
    timeout = TIMEOUT_S
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """Answer one request."""
        self._send(self._answer())

    do_HEAD = do_GET

    def _answer(self) -> Response:
        path, _, query = self.path.partition("?")
        request = Request(
            unquote(path, errors="replace"),
            dict(parse_qsl(query, keep_blank_values=True)),
            self.headers.get("Accept", ""),
        )
        if not self._is_for_this_machine():
            return Response(b"this name is not the server's\n", status=HTTPStatus.FORBIDDEN)
        if request.path != "/healthz" and self.server.token:
            if self._is_right(request.query.get("token", "")):
                # For browsers: from now on in a cookie, and out of the history.
                cookie = f"{COOKIE}={self.server.token}; HttpOnly; SameSite=Strict; Path=/"
                headers = {"Location": quote("/" + request.path.lstrip("/")), "Set-Cookie": cookie}
                return Response(b"", status=HTTPStatus.SEE_OTHER, headers=headers)
            if not self._is_right(self._token()):
                return Response(
                    b"a token is needed\n",
                    status=HTTPStatus.UNAUTHORIZED,
                    headers={"WWW-Authenticate": "Bearer"},
                )
        handler = find(self.server.routes, request.path)
        if handler is None:
            return Response(b"there is nothing at this path\n", status=HTTPStatus.NOT_FOUND)
        try:
            return handler(request)
        except Exception:  # one bad answer must not be the last; its cause may name files
            _logger.exception("answering %r", request.path)
            return Response(b"the server failed; its log says why\n", status=HTTPStatus.INTERNAL_SERVER_ERROR)

    def _is_for_this_machine(self) -> bool:
        """A page of another site must not read us through a name it points to this machine."""
        if self.server.token or not is_loopback(str(self.server.server_address[0])):
            return True
        name = re.sub(r":\d*$", "", self.headers.get("Host", "localhost"))
        return is_loopback(name.strip("[]").lower())

    def _token(self) -> str:
        scheme, _, given = self.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return given.strip()
        try:
            cookie = SimpleCookie(self.headers.get("Cookie", "")).get(COOKIE)
        except CookieError:
            return ""
        return cookie.value if cookie else ""

    def _is_right(self, token: str) -> bool:
        return hmac.compare_digest(token.encode("utf-8", "replace"), self.server.token.encode())

    def _send(self, response: Response) -> None:
        pieces = [response.body] if isinstance(response.body, bytes) else response.body
        self.send_response(response.status)
        if isinstance(response.body, bytes):
            self.send_header("Content-Length", str(len(response.body)))
        else:
            self.send_header("Connection", "close")  # the end of the body is the end of the connection
        self.send_header("Content-Type", response.content_type)
        for name, value in {**_HEADERS, **response.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            for piece in pieces:
                self.wfile.write(piece)

    def log_message(self, format: str, *args: Any) -> None:
        """One line on the terminal for each scrape helps nobody."""


def find(routes: Routes, path: str) -> Handler | None:
    """The handler of a path, or of the longest beginning of it that takes longer ones too."""
    if path in routes:
        return routes[path]
    prefixes = [known for known in routes if known.endswith("/") and known != "/" and path.startswith(known)]
    return routes[max(prefixes, key=len)] if prefixes else None
