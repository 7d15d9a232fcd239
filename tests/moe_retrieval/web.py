"""A server of files on 127.0.0.1 that knows ranges and can break a connection."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Web:
    address: str
    files: dict[str, bytes]
    tags: dict[str, str] = field(default_factory=dict)
    """Path -> its ETag; one without a tag has no version."""
    breaks_after: list[int] = field(default_factory=list)
    """Of the coming answers: the bytes of the body after which the connection ends."""
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """Path and range of every request."""
    knows_ranges: bool = True
    refuses: bool = False
    """Answers 416 to whatever is asked"""


class _Handler(BaseHTTPRequestHandler):
    web: Web

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.web.asked.append((self.path, wanted))
        content, tag = self.web.files.get(self.path), self.web.tags.get(self.path)
        if content is None:
            self.send_error(404)
            return
        start = self.start_of(wanted, tag)
        if self.web.refuses or (start and start >= len(content)):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if tag:
            self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        self.wfile.write(body[: self.web.breaks_after.pop(0)] if self.web.breaks_after else body)

    def start_of(self, wanted: str | None, tag: str | None) -> int:
        found = re.fullmatch(r"bytes=(\d+)-", wanted or "")
        same = self.headers.get("If-Range") in (None, tag)
        return int(found[1]) if found and same and self.web.knows_ranges else 0

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Web]:
    """path -> content"""
    handler = type("Handler", (_Handler,), {})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        handler.web = Web(f"http://127.0.0.1:{server.server_port}", files)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield handler.web
        finally:
            server.shutdown()
            thread.join()
