"""A hub on this machine: the few answers of its HTTP interface that downloading and pinning need."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote

import pytest
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Files by `org/name/path` (a data set's begin with `datasets/`); `requests` is what was asked, in order.

    `cut` names a file whose first answer breaks off in the middle.
    """

    def __init__(self, files: dict[str, bytes], cut: str = "") -> None:
        self.files, self.cut = files, cut
        self.requests: list[tuple[str, str, str | None]] = []


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            wanted = self.headers.get("Range")
            path = unquote(self.path.lstrip("/").partition("?")[0])
            hub.requests.append((self.command, path, wanted))
            if path.startswith("api/"):
                return self.send(self.listing(path).encode(), body)
            content = hub.files.get(path.replace(f"/resolve/{COMMIT}", ""))
            if content is None:
                return self.send(b"Entry not found", body, status=404, code="EntryNotFound")
            if body and hub.cut and path.endswith(hub.cut):
                hub.cut = ""
                self.send(content, True, stop=len(content) // 2)
                self.close_connection = True
                return None
            start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
            return self.send(content[start:], body, status=206 if start else 200, etag=content)

        def listing(self, path: str) -> str:
            kind, repo = path.removeprefix("api/").partition("/revision/")[0].split("/", 1)
            root = repo + "/" if kind == "models" else f"datasets/{repo}/"
            siblings = []
            for name, content in hub.files.items():
                if name.startswith(root):
                    large = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
                    entry = {"rfilename": name.removeprefix(root), "size": len(content), "blobId": "b"}
                    siblings.append(entry | ({"lfs": large} if name.endswith((".safetensors", ".tar", ".jpg")) else {}))
            return json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings, "tags": [], "downloads": 0})

        def send(
            self,
            content: bytes,
            body: bool,
            status: int = 200,
            code: str = "",
            etag: bytes = b"",
            stop: int | None = None,
        ) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha1(etag or content).hexdigest()}"')
            if code:
                self.send_header("X-Error-Code", code)
            self.end_headers()
            if body:
                self.wfile.write(content[:stop])

        def log_message(self, *args: object) -> None:
            pass

    return Handler


@contextmanager
def served(hub: Hub, monkeypatch: pytest.MonkeyPatch, home: str) -> Iterator[str]:
    """Serve it, and make huggingface_hub ask it; `home` is its cache. Gives the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    point(monkeypatch, address, home)
    try:
        yield address
    finally:
        server.shutdown()
        server.server_close()


def point(monkeypatch: pytest.MonkeyPatch, address: str, home: str) -> None:
    """What HF_ENDPOINT and HF_HOME do before the library is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HOME", home)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", f"{home}/hub")
