"""A small Hugging Face Hub on 127.0.0.1: the part of its protocol that downloads use."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from conftest import cli_environment

COMMIT = "607a30d783dfa663caf39e06633721c8d4cfcd7e"


@dataclass
class Repository:
    """What one repository holds, and how it behaves."""

    files: dict[str, bytes]
    commit: str = COMMIT
    status: int = 200
    """401 or 403 with `error`: gated or private; 500: out of order."""
    error: str = ""
    """The Hub's X-Error-Code."""
    cut: set[str] = field(default_factory=set)
    """Files whose next download ends in the middle."""
    damaged: set[str] = field(default_factory=set)
    """Files that arrive with other bytes than their hash says."""


@dataclass
class Hub:
    """The running server."""

    endpoint: str
    repositories: dict[str, Repository]
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path and Range header of each request."""

    def downloads(self, name: str) -> list[str]:
        """Return the Range headers of the downloads of a file."""
        return [
            ranges for method, path, ranges in self.requests if method == "GET" and name in path
        ]


def is_lfs(name: str) -> bool:
    """Large files are kept apart on the Hub, by their SHA-256."""
    return name.endswith((".safetensors", ".bin", ".model"))


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serve(repositories: dict[str, Repository]) -> Iterator[Hub]:
    """Serve repositories while the context is open."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    hub = Hub(f"http://127.0.0.1:{server.server_port}", repositories)
    server.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        return hub

    def log_message(self, *args: object) -> None:
        """Keep the tests' output clean."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range", "")))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._info(match[1], match[2])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(*match.groups())
        elif match := re.fullmatch(r"/(?:cdn|api/resolve-cache)/([^/]+/[^/]+)/(.+)", path):
            self._content(match[1], match[2])
        else:
            self._send(404)

    def _info(self, repo_id: str, revision: str | None) -> None:
        repository = self._known(repo_id, revision)
        if repository is None:
            return
        siblings = [
            {
                "rfilename": name,
                "size": len(content),
                "blobId": git_hash(content),
                **(
                    {
                        "lfs": {
                            "sha256": hashlib.sha256(content).hexdigest(),
                            "size": len(content),
                            "pointerSize": 134,
                        }
                    }
                    if is_lfs(name)
                    else {}
                ),
            }
            for name, content in repository.files.items()
        ]
        body = {"_id": "1", "id": repo_id, "modelId": repo_id, "sha": repository.commit}
        body |= {"siblings": siblings, "private": False, "tags": [], "downloads": 0, "likes": 0}
        self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _known(self, repo_id: str, revision: str | None) -> Repository | None:
        repository = self.hub.repositories.get(repo_id)
        if repository is None:  # the real Hub does not say whether a repository is private
            self._send(401, headers={"X-Error-Code": "RepoNotFound"})
        elif repository.status >= 500:
            self._send(repository.status)
        elif revision not in {None, "main", repository.commit}:
            self._send(404, headers={"X-Error-Code": "RevisionNotFound"})
        else:
            return repository
        return None

    def _resolve(self, repo_id: str, revision: str, name: str) -> None:
        repository = self._known(repo_id, revision)
        if repository is None:
            return
        headers = {"X-Repo-Commit": repository.commit}
        if repository.status != 200:
            self._send(repository.status, headers={"X-Error-Code": repository.error})
        elif name not in repository.files:
            self._send(404, headers={**headers, "X-Error-Code": "EntryNotFound"})
        else:
            content = repository.files[name]
            etag = hashlib.sha256(content).hexdigest() if is_lfs(name) else git_hash(content)
            headers |= {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{etag}"'}
            # large files lie on another host; the redirect of the others is relative, and the
            # client follows it already when it asks for metadata
            place = f"{self.hub.endpoint}/cdn" if is_lfs(name) else "/api/resolve-cache"
            headers["Location"] = f"{place}/{repo_id}/{name}"
            self._send(302 if is_lfs(name) else 307, headers=headers)

    def _content(self, repo_id: str, name: str) -> None:
        repository = self.hub.repositories[repo_id]
        content = repository.files[name]
        etag = hashlib.sha256(content).hexdigest() if is_lfs(name) else git_hash(content)
        headers = {
            "X-Repo-Commit": repository.commit,
            "ETag": f'"{etag}"',
            "Accept-Ranges": "bytes",
        }
        if name in repository.damaged:
            content = content[:-4] + b"\0\1\2\3"
        status, whole = 200, len(content)
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(match[1])
            status, content = 206, content[start:]
            headers["Content-Range"] = f"bytes {start}-{whole - 1}/{whole}"
        if name in repository.cut and self.command == "GET":
            repository.cut.discard(name)
            self._send(status, content, headers, only=len(content) // 2)
        else:
            self._send(status, content, headers)

    def _send(
        self,
        status: int,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        *,
        only: int | None = None,
    ) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:only])
            self.wfile.flush()
        if only is not None:
            self.close_connection = True


def hub_environment(endpoint: str, cache: Path, *, offline: bool = False) -> dict[str, str]:
    """Return the variables under which the command line uses this hub and this cache."""
    changing = {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_OFFLINE": str(int(offline))}
    return cli_environment(changing)
