"""A web server of files on loopback that misbehaves on demand and keeps count of what it was asked."""

import os
import re
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class BadServer(ThreadingHTTPServer):
    """files: {name: bytes}.  faults: {name: [one for each coming request]}, "" for none; always: {name: one for every request}."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.faults, self.always = dict(files), {}, {}
        self.tags = {}                  # names whose ETag is not the hash of their content
        self.secret = None              # what the query of every request must hold
        self.bearer = None              # what its Authorization must be
        self.asked = []                 # (name, start, end) of each request, end exclusive
        self.sent = 0                   # bytes of bodies
        self.book = threading.Lock()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def count(self, name):
        """Requests for more than the facts of a file."""
        return sum(one == name and end - start > 1 for one, start, end in self.asked)

    def forget(self):
        self.asked.clear()
        self.sent = 0

    def handle_error(self, request, client_address):
        """A client that hangs up is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        name = self.path.lstrip("/").partition("?")[0]
        self.send_response(200 if name in self.server.files else 404)
        if self.server.always.get(name) != "untold at all":
            self.send_header("Content-Length", str(len(self.server.files.get(name, b""))))
        self.end_headers()

    def do_GET(self):
        server = self.server
        name, _, query = self.path.lstrip("/").partition("?")
        content = server.files.get(name)
        asked = re.match(r"bytes=(\d+)-(\d+)$", self.headers.get("Range", ""))
        start, end = (int(asked[1]), int(asked[2]) + 1) if asked else (0, len(content or b""))
        with server.book:
            server.asked.append((name, start, end))
            waiting = server.faults.get(name)
            fault = (waiting.pop(0) if waiting else "") or server.always.get(name, "")
        if fault.isdigit():
            return self.answer(int(fault), b"trouble")
        if server.secret and server.secret not in query:
            return self.answer(403, b"")
        if server.bearer and self.headers.get("Authorization") != server.bearer:
            return self.answer(401, b"")
        if content is None:
            return self.answer(404, b"")
        if fault == "slow":
            time.sleep(1.2)
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())
            return None
        headers = {"ETag": server.tags.get(name, f'"{hash(content)}"')}
        if fault == "no ranges" or not asked:
            return self.answer(200, content, headers)
        if start >= len(content):
            return self.answer(416, b"", headers | {"Content-Range": f"bytes */{len(content)}"})
        body = content[start:end]
        if fault == "short":                    # well-formed, but less than was asked for
            body = body[:-(-len(body) // 2)]
        told = "*" if fault.startswith("untold") else len(content)
        headers["Content-Range"] = f"bytes {start}-{start + len(body) - 1}/{told}"
        if fault == "gzip":
            headers["Content-Encoding"] = "gzip"
        return self.answer(206, body, headers, half=fault == "half")

    def answer(self, status, body, headers=None, half=False):
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if half:
            body, self.close_connection = body[:len(body) // 2], True
        with self.server.book:
            self.server.sent += len(body)
        self.wfile.write(body)
