"""A web server on this machine, which answers as a test says and remembers what it was asked."""

import http.server
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ssl import SSLContext

Handler = http.server.BaseHTTPRequestHandler


@contextmanager
def serving(answer: Callable[[Handler], None], context: SSLContext | None = None) -> Iterator[tuple[int, list[str]]]:
    """A web server on loopback; `answer(handler)` answers. Yields its port and the paths asked."""
    asked: list[str] = []

    class Answering(Handler):
        def do_GET(self) -> None:
            asked.append(self.path)
            answer(self)

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    server.daemon_threads = True
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_port, asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def nothing(handler: Handler) -> None:
    """An answer without a body."""
    handler.send_response(204)
    handler.end_headers()
