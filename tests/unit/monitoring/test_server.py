"""The server: who may ask, what is found at a path, and that no answer is the last."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Iterator
from http.client import HTTPConnection

import pytest

from monitoring.server import Request, Response, Routes, Server, find, is_loopback

TOKEN = "a-token-of-some-length"


def fail(request: Request) -> Response:
    raise RuntimeError("/secret/place")


ROUTES: Routes = {
    "/": lambda request: Response(b"home"),
    "/healthz": lambda request: Response(b"ok\n"),
    "/echo/": lambda request: Response(f"{request.path} {dict(request.query)}".encode()),
    "/pieces": lambda request: Response(iter([b"one ", b"two"])),
    "/fail": fail,
}


def serve(token: str = "") -> Iterator[Server]:
    with Server("127.0.0.1", 0, ROUTES, token) as serving:
        serving.start()
        yield serving
        serving.shutdown()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    yield from serve()


@pytest.fixture(scope="module")
def guarded() -> Iterator[Server]:
    yield from serve(TOKEN)


def ask(server: Server, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], str]:
    connection = HTTPConnection("127.0.0.1", server.server_port, timeout=5)
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, dict(response.getheaders()), text


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/", 200, "home"),
        ("/healthz", 200, "ok\n"),
        ("/pieces", 200, "one two"),
        ("/echo/a%2Fb/../c?x=%3C1&y", 200, "/echo/a/b/../c {'x': '<1', 'y': ''}"),
        ("/echo", 404, "there is nothing at this path\n"),
        ("/healthz/", 404, "there is nothing at this path\n"),
        ("/../etc/passwd", 404, "there is nothing at this path\n"),
        ("//[", 404, "there is nothing at this path\n"),
        ("/%ff%00", 404, "there is nothing at this path\n"),
    ],
)
def test_a_path_leads_to_its_handler_or_to_nothing(server: Server, path: str, status: int, text: str) -> None:
    found_status, _, found_text = ask(server, path)

    assert (found_status, found_text) == (status, text)


def test_the_longest_beginning_of_a_path_wins() -> None:
    def one(request: Request) -> Response:
        return Response(b"1")

    def two(request: Request) -> Response:
        return Response(b"2")

    routes = {"/a/": one, "/a/b/": two, "/": one}

    assert find(routes, "/a/b/c") is two
    assert find(routes, "/a/c") is one
    assert find(routes, "/b") is None


def test_a_handler_that_fails_tells_nothing_and_stops_nothing(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    status, _, text = ask(server, "/fail")

    assert status == 500
    assert "secret" not in text
    assert "/secret/place" in caplog.text
    assert ask(server, "/")[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"])
def test_nothing_but_reading_is_answered(server: Server, method: str) -> None:
    assert ask(server, "/", method)[0] == 501


def test_a_head_has_the_headers_and_no_body(server: Server) -> None:
    status, headers, text = ask(server, "/", "HEAD")

    assert (status, headers["Content-Length"], text) == (200, "4", "")


def test_every_answer_forbids_foreign_scripts_and_frames(server: Server) -> None:
    for path in ("/", "/nothing", "/fail"):
        headers = ask(server, path)[1]
        assert "default-src 'self'" in headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "garbage", [b"\x00\xff\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"x" * 70_000, b""]
)
def test_what_is_no_request_ends_one_connection_only(server: Server, garbage: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=5) as connection:
        connection.sendall(garbage)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65_536):
            pass

    assert ask(server, "/")[0] == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:1234", "[::1]:9300", "LOCALHOST"])
def test_this_machine_is_asked_by_its_own_names(server: Server, host: str) -> None:
    assert ask(server, "/", Host=host)[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:9300", "127.0.0.1.evil.example", "", "["])
def test_a_foreign_name_that_leads_to_this_machine_is_refused(server: Server, host: str) -> None:
    assert ask(server, "/", Host=host)[0] == 403


def test_without_the_token_only_health_is_told(guarded: Server) -> None:
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": TOKEN},
        {"Authorization": f"Basic {TOKEN}"},
        {"Cookie": "univip_token=wrong"},
        {"Cookie": "\x01;=;,"},
        {"Authorization": "Bearer \xe9"},
    ):
        assert ask(guarded, "/", **headers)[0] == 401
    assert ask(guarded, "/nothing?token=")[0] == 401
    assert ask(guarded, "/healthz")[2] == "ok\n"


@pytest.mark.parametrize(
    "headers", [{"Authorization": f"Bearer {TOKEN}"}, {"Cookie": f"a=b; univip_token={TOKEN}"}]
)
def test_with_the_token_all_is_told_to_any_name(guarded: Server, headers: dict[str, str]) -> None:
    assert ask(guarded, "/", Host="login1", **headers)[2] == "home"


def test_a_token_in_the_address_moves_into_a_cookie_of_this_site_only(guarded: Server) -> None:
    status, headers, _ = ask(guarded, f"//evil.example/x?token={TOKEN}")

    assert (status, headers["Location"]) == (303, "/evil.example/x")
    assert headers["Set-Cookie"] == f"univip_token={TOKEN}; HttpOnly; SameSite=Strict; Path=/"


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.9.1", True), ("::1", True), ("localhost", True)]
    + [(host, False) for host in ("0.0.0.0", "::", "10.0.0.1", "login1", "", "127.0.0.1.x")],
)
def test_addresses_of_this_machine_are_told_apart(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_other_machines_are_not_served_without_a_token() -> None:
    with pytest.raises(ValueError, match="token"):
        Server("0.0.0.0", 0, ROUTES)


def test_an_address_of_the_newer_kind_is_served_too() -> None:
    try:
        serving = Server("::1", 0, ROUTES)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with serving:
        serving.start()
        with urllib.request.urlopen(f"http://[::1]:{serving.server_port}/healthz", timeout=5) as response:
            assert response.read() == b"ok\n"
        serving.shutdown()


def test_a_port_in_use_is_an_error(server: Server) -> None:
    with pytest.raises(OSError, match="in use"):
        Server("127.0.0.1", server.server_port, ROUTES)


def test_a_client_that_says_nothing_does_not_keep_others_waiting(server: Server) -> None:
    url = f"http://127.0.0.1:{server.server_port}/healthz"
    with (
        socket.create_connection(("127.0.0.1", server.server_port), timeout=5),
        urllib.request.urlopen(url, timeout=5) as response,
    ):
        assert response.read() == b"ok\n"
