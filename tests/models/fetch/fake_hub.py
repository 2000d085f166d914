"""The part of the hub's HTTP interface that downloads need, on the loopback address."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

__all__ = ["FakeHub", "Outcome", "Repository", "running"]

PROGRAM = """
import json, os, sys, time
if "NO_PAUSES" in os.environ:
    time.sleep = lambda seconds: None
from tinygrad_peft.errors import TinygradPeftError
from tinygrad_peft.models.fetch.hub import download_from_hub
name, revision, kind, folder = sys.argv[1:]
try:
    path = download_from_hub(name, revision=revision or None, kind=kind, folder=folder)
    told = {"path": str(path)}
except TinygradPeftError as error:
    told = {"kind": type(error).__name__, "message": str(error)}
print(json.dumps(told))
"""


@dataclass
class Repository:
    """The files of a repository; each revision has the same."""

    files: Mapping[str, bytes]
    commits: Mapping[str, str] = field(default_factory=lambda: {"main": "a" * 40})
    gated: bool = False


@dataclass(frozen=True)
class Outcome:
    """The path that `download_from_hub` returned, or its error."""

    path: Path | None = None
    kind: str = ""
    message: str = ""


@dataclass
class FakeHub:
    """Repositories, the requests to them, and their faults.

    `cuts` is the number of downloads that end halfway, `delay` the seconds before each begins.
    """

    folder: Path
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    cuts: int = 0
    delay: float = 0.0
    address: str = ""

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that make a process use this hub."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        return kept | {
            "HF_ENDPOINT": self.address,
            "HF_HOME": str(self.folder),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def download(
        self,
        name: str,
        *,
        revision: str = "",
        kind: str = "model",
        folder: str = "",
        **variables: str,
    ) -> Outcome:
        """Download in a process of its own, since huggingface_hub reads variables once."""
        ran = subprocess.run(
            [sys.executable, "-c", PROGRAM, name, revision, kind, folder],
            env=self.environment | variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert ran.returncode == 0, ran.stderr
        told = json.loads(ran.stdout)
        if "path" in told:
            return Outcome(Path(told["path"]))
        return Outcome(kind=told["kind"], message=told["message"])


@contextmanager
def running(folder: Path) -> Iterator[FakeHub]:
    """Run a hub within the block."""
    hub = FakeHub(folder)

    class Handler(_Handler):
        fake = hub

    server = _Server(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True  # do not wait for answers that the client gave up on


class _Handler(BaseHTTPRequestHandler):
    fake: FakeHub

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        self.fake.requests.append(f"{self.command} {path}")
        asked = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        if asked is not None:
            return self._tell(asked[1], asked[2] or "revision", asked[3] or "main")
        asked = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if asked is not None:
            return self._send(asked[1], asked[2], asked[3])
        return self._refuse(404, "EntryNotFound")

    def _found(self, name: str, revision: str) -> tuple[Repository | None, str]:
        """Find the repository and the commit; if there is none, answer with the error."""
        repository = self.fake.repositories.get(name)
        if repository is None:
            self._refuse(401, "RepoNotFound")
            return None, ""
        commits = {**repository.commits, **{c: c for c in repository.commits.values()}}
        if not repository.gated and revision in commits:
            return repository, commits[revision]
        self._refuse(*((403, "GatedRepo") if repository.gated else (404, "RevisionNotFound")))
        return None, ""

    def _tell(self, name: str, what: str, revision: str) -> None:
        repository, commit = self._found(name, revision)
        if repository is None:
            return
        entries = [
            {"type": "file", "path": path, "size": len(data), "oid": _etag(data)}
            for path, data in repository.files.items()
        ]
        siblings = [{"rfilename": path} for path in repository.files]
        told = entries if what == "tree" else {"id": name, "sha": commit, "siblings": siblings}
        self._write(200, json.dumps(told).encode(), {"Content-Type": "application/json"})

    def _send(self, name: str, revision: str, path: str) -> None:
        repository, commit = self._found(name, revision)
        if repository is None:
            return
        if path not in repository.files:
            self._refuse(404, "EntryNotFound")
            return
        data = repository.files[path]
        headers = {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        status, asked = 200, self.headers.get("Range")
        if asked is not None:
            self.fake.ranges.append(asked)
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            status, data = 206, data[start:]
        if self.command == "GET":
            time.sleep(self.fake.delay)
        cut = self.command == "GET" and self.fake.cuts > 0 and path.endswith(".safetensors")
        self.fake.cuts -= cut
        self._write(status, data, headers, sent=len(data) // 2 if cut else len(data))

    def _refuse(self, status: int, code: str) -> None:
        self._write(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def _write(
        self, status: int, data: bytes, headers: Mapping[str, str], sent: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            with suppress(ConnectionError):  # the client timed out
                self.wfile.write(data[:sent])


def _etag(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()
