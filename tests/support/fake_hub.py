"""A Hub on the loopback interface: serves one model folder, or does not respond, or knows no model."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SHA = "0123456789abcdef0123456789abcdef01234567"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    repository = ""
    folder = Path()
    requests: list[str]

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        path = self.path.split("?")[0]
        self.requests.append(f"{self.command} {path}")
        found = [file for file in sorted(self.folder.rglob("*")) if file.is_file()]
        files = [file.relative_to(self.folder).as_posix() for file in found]
        if path.startswith(f"/api/models/{self.repository}"):
            return self.send_info(path, files, with_body)
        begin, _, name = path.partition("/resolve/")
        name = name.partition("/")[2]  # after the revision
        if begin == f"/{self.repository}" and name in files:
            return self.send_body((self.folder / name).read_bytes(), with_body)
        return self.send_body(b"{}", with_body, status=404, error="RepoNotFound")

    def send_info(self, path: str, files: list[str], with_body: bool) -> None:
        sizes = {name: (self.folder / name).stat().st_size for name in files}
        if "/tree/" in path:
            body: object = [{"type": "file", "path": n, "size": s, "oid": n} for n, s in sizes.items()]
        else:
            siblings = [{"rfilename": n, "size": s, "blobId": n} for n, s in sizes.items()]
            body = {"id": self.repository, "sha": SHA, "siblings": siblings}
        self.send_body(json.dumps(body).encode(), with_body)

    def send_body(self, body: bytes, with_body: bool, status: int = 200, error: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", SHA)
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


@contextmanager
def fake_hub(repository: str = "no repository", folder: Path = Path("/nowhere")) -> Iterator[tuple[str, list[str]]]:
    """Yield its address, and the requests that it got."""
    requests: list[str] = []
    handler = type("OneModel", (Handler,), {"repository": repository, "folder": folder, "requests": requests})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()


def put_in_cache(cache: Path, repository: str, folder: Path) -> None:
    home = cache / "hub" / f"models--{repository.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(SHA)
    (home / "blobs").mkdir()
    shutil.copytree(folder, home / "snapshots" / SHA)
