"""An S3 that fails now and then: a proxy on loopback in front of moto, which also lists what was committed."""

from __future__ import annotations

import http.client
import random
import threading
import time
from collections import Counter
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

BUSY = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"


class Proxy(ThreadingHTTPServer):
    """Forwards to `host`:`port`. A request fails with 503 with the probability `faults`, and always until `away`.

    puts: how often an object was written, by its path; a conditional write that S3 refused is none. failed: requests
    that were refused.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str, port: int, faults: float, seed: int):
        super().__init__(("127.0.0.1", 0), _Request)
        self.upstream, self.faults, self.random = (host, port), faults, random.Random(seed)
        self.away = 0.0
        self.puts: Counter[str] = Counter()
        self.failed = 0
        self.lock, self.conditional = threading.Lock(), threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def outage(self, seconds: float) -> None:
        self.away = time.monotonic() + seconds

    def refuses(self) -> bool:
        with self.lock:
            refused = time.monotonic() < self.away or self.random.random() < self.faults
            self.failed += refused
            return refused

    def handle_error(self, request, client_address) -> None:
        """A client that was killed in the middle of a request is what this is for."""


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def forward(self) -> None:
        body = self._body()
        if self.server.refuses():
            return self._answer(503, [("Content-Type", "application/xml")], BUSY)
        upstream = http.client.HTTPConnection(*self.server.upstream, timeout=60)
        try:
            headers = {k: v for k, v in self.headers.items() if k.lower() not in ("connection", "transfer-encoding")}
            alone = self.headers.get("If-None-Match") == "*"
            with self.server.conditional if alone else nullcontext():  # S3 looks and writes in one step, moto in two
                upstream.request(self.command, self.path, body, headers | {"Content-Length": str(len(body))})
                answer = upstream.getresponse()
                data = answer.read()
        finally:
            upstream.close()
        parts = urlsplit(self.path)
        whole = self.command == "PUT" and "partNumber" not in parts.query
        completed = self.command == "POST" and "uploadId" in parts.query
        if answer.status == 200 and (whole or completed):
            with self.server.lock:
                self.server.puts[unquote(parts.path)] += 1
        self._answer(answer.status, answer.getheaders(), data)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = forward

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
        self.send_response_only(status)
        length = str(len(data))
        for name, value in headers:
            if name.lower() == "content-length":
                length = value  # of HEAD: the object's, though no body is sent
            elif name.lower() not in ("connection", "transfer-encoding", "keep-alive"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_) -> None:
        pass
