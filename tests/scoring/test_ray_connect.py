"""Addresses where no Ray cluster answers: one line, and soon."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager

import pytest

from tqs_onnx.scoring.workers.ray_connect import complaint_about


@contextmanager
def listener(answer: bytes | None) -> Generator[str]:
    """Yield the address of a server that gives every client the same answer; None: it says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept: list[socket.socket] = []

        def serve() -> None:
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                kept.append(client)
                if answer is not None:
                    client.recv(64)
                    client.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for client in kept:
                client.close()


def test_a_server_that_sends_its_http2_settings_is_let_through() -> None:
    with listener(b"\0\0\0\x04\0\0\0\0\0") as address:
        assert complaint_about(address) == ""


def test_another_server_is_called_what_it_is_not() -> None:
    with listener(b"220 mail.example ESMTP\r\n") as address:
        assert complaint_about(address) == f"what listens at {address} is not a Ray cluster"


def test_a_server_that_says_nothing_is_given_up_in_time() -> None:
    with listener(None) as address:
        start = time.monotonic()
        assert complaint_about(address, 0.5).startswith("nothing")
        assert time.monotonic() - start < 5


@pytest.mark.parametrize("host", ["h" * 80, "h" * 80 + ".example", "a..b", "\udcff"])
def test_a_name_that_no_host_can_have_is_one_line(host: str) -> None:
    assert complaint_about(f"{host}:6379").startswith("nothing listens at ")
    assert complaint_about("127.0.0.1:99999999").startswith("nothing listens at ")
