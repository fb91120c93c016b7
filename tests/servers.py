"""Real servers on 127.0.0.1 for tests: S3 (moto), SFTP (OpenSSH), completions, and an HTTP proxy that makes faults."""

from __future__ import annotations

import contextlib
import http.client
import os
import pwd
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

SSHD = "/usr/sbin/sshd"
PIECES = 20
DROPPED = ("connection", "date", "server", "transfer-encoding")

S3_CODE = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()  # until the test process ends, however it does
"""


class Fault(NamedTuple):
    """What is wrong with an answer."""

    status: int = 0
    """Instead of the answer, this status and nothing else."""
    delay_s: float = 0.0
    """Before the answer."""
    drip_s: float = 0.0
    """Before each of the 20 pieces of the body."""
    keep: float = 1.0
    """Part of the body that is sent before the connection is closed."""
    hang: bool = False
    """After what is kept of the body, or where nothing is, before the answer: silence instead of closing."""
    flip: bool = False
    """One bit in the middle of the body."""


Rule = Callable[[str, str, int], Fault | None]
"""(method, path, how often both were asked for before) -> the fault of the answer."""


class FaultyProxy:
    """Passes requests on to a server on 127.0.0.1, with the faults that ``rule`` says, and counts them."""

    def __init__(self, port: int) -> None:
        self.rule: Rule | None = None
        self.asked: Counter[tuple[str, str]] = Counter()
        self.faults = 0
        self._lock, self._end = threading.Lock(), threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                with contextlib.suppress(OSError):  # whoever asked has gone
                    proxy._answer(self, port)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads, self._server.block_on_close = True, False
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def reset(self) -> None:
        """No faults, nothing counted; whoever hangs is let go."""
        self._end.set()
        self._end, self.rule, self.asked, self.faults = threading.Event(), None, Counter(), 0

    def close(self) -> None:
        self.reset()
        self._server.shutdown()
        self._server.server_close()

    def gets(self, text: str) -> dict[str, int]:
        """How often each file with a text in its path was fetched."""
        return {path: count for (method, path), count in self.asked.items() if method == "GET" and text in path}

    def _answer(self, request: BaseHTTPRequestHandler, port: int) -> None:
        key, end = (request.command, request.path), self._end
        with self._lock:
            fault = (self.rule and self.rule(*key, self.asked[key])) or Fault()
            self.asked[key] += 1
            self.faults += fault != Fault()
        end.wait(fault.delay_s)
        if fault.hang and not fault.keep:
            end.wait()
        if fault.status:
            request.send_response(fault.status)
            request.send_header("Content-Length", "0")
            return request.end_headers()
        status, headers, body = _ask(port, request)
        request.send_response(status)
        for name, value in headers:
            # Without S3's own checksums, which older objects and other stores lack.
            if name.lower() not in DROPPED and not name.lower().startswith("x-amz-checksum"):
                request.send_header(name, value)
        request.end_headers()
        self._send(request, body, fault, end)

    def _send(self, request: BaseHTTPRequestHandler, body: bytes, fault: Fault, end: threading.Event) -> None:
        if fault.flip and body:
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        body = body[: int(len(body) * fault.keep)]
        step = max(1, len(body) // PIECES) if fault.drip_s else len(body) + 1
        for start in range(0, len(body), step):
            end.wait(fault.drip_s)
            request.wfile.write(body[start : start + step])
        if fault.hang:
            end.wait()
        request.close_connection = fault.keep < 1


def _ask(port: int, request: BaseHTTPRequestHandler) -> tuple[int, list[tuple[str, str]], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(request.command, request.path, headers=dict(request.headers.items()))
        answer = connection.getresponse()
        return answer.status, answer.getheaders(), answer.read()
    finally:
        connection.close()


@contextlib.contextmanager
def s3_server() -> Iterator[int]:
    """moto's S3 in a process of its own; yields its port."""
    command = [sys.executable, "-c", S3_CODE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        assert server.stdout is not None
        port = server.stdout.readline()
        assert port, "moto's server did not start"
        try:
            yield int(port)
        finally:
            server.kill()


@contextlib.contextmanager
def sftp_server(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """OpenSSH's server in a process of its own, with keys of its own in a folder; yields its URL and the environment
    that Streaming needs to log in."""
    if not os.path.exists(SSHD) or shutil.which("ssh-keygen") is None:
        pytest.skip(f"no SFTP server: {SSHD} is absent (apt-get install openssh-server)")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    port, log = free_port(), folder / "log"
    options = {
        "HostKey": folder / "host", "AuthorizedKeysFile": folder / "user.pub", "Port": port,
        "ListenAddress": "127.0.0.1", "PidFile": "none", "StrictModes": "no", "UsePAM": "yes",
        "PasswordAuthentication": "no", "Subsystem": "sftp internal-sftp",
    }  # fmt: skip
    (folder / "config").write_text("".join(f"{name} {value}\n" for name, value in options.items()))
    host_key = (folder / "host.pub").read_text()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}")
    if os.geteuid() == 0:
        os.makedirs("/run/sshd", exist_ok=True)  # sshd asks for it
    server = subprocess.Popen([SSHD, "-D", "-f", str(folder / "config"), "-E", str(log)])
    try:
        _wait_for(port, server, log)
        environment = {
            "COMPOSER_SFTP_KEY_FILE": str(folder / "user"),
            "COMPOSER_SFTP_KNOWN_HOSTS_FILE": str(folder / "known_hosts"),
        }
        yield f"sftp://{pwd.getpwuid(os.geteuid()).pw_name}@127.0.0.1:{port}", environment
    finally:
        server.terminate()
        server.wait(10)


@contextlib.contextmanager
def completions_server(mode: str, *arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """URL and process of completions_server.py."""
    command = [sys.executable, str(Path(__file__).with_name("completions_server.py")), mode, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        assert port, "the server did not start"
        try:
            yield f"http://127.0.0.1:{port}/v1", process
        finally:
            process.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 120
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert server.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.05)
