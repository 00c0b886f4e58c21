"""img2dataset behind a guard. Runs in img2dataset's own environment, so nothing of un2clip is imported here.

URLs are hostile, and so is what they answer. img2dataset asks for each by `urllib.request.urlopen`, in processes that
it spawns; a spawned process imports the script that started it, this one, as `__mp_main__`. So an opener installed at
the end of this script is every process's, and it is all that stands between a list of URLs and the network. Workers of
Spark and Ray import nothing of the kind: there the opener comes with what is sent to them, img2dataset's `Downloader`.
"""

import functools
import http.client
import importlib
import io
import ipaddress
import json
import os
import signal
import socket
import ssl
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address


class Refused(Exception):
    """The guard does not go there, or reads no further. No OSError or ValueError, which the library would rename."""


@dataclass(frozen=True, kw_only=True)
class Guard:
    """What a request may do.

    Attributes:
        allow_private_addresses: also connect to addresses that are not public, and through the environment's proxies.
        max_bytes: of one answer, its headers included.
        deadline_s: seconds from the first byte of an answer to its last, however it drips.
    """

    allow_private_addresses: bool
    max_bytes: int
    deadline_s: float


def is_public(address: str) -> bool:
    """Whether a numeric address lies in the public internet, also where IPv6 only wraps IPv4."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        wrapped = ip.ipv4_mapped or ip.sixtofour
        if wrapped is None and ip in _NAT64:
            wrapped = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        ip = wrapped or ip
    return ip.is_global and not ip.is_multicast


def _connect(host: str, port: int, timeout: float | None) -> socket.socket:
    """Connect to the very addresses that were looked up and judged; a second look-up could answer otherwise."""
    found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for address in found:
        if not is_public(address):
            raise Refused(f"refused address {address}")
    error = OSError("no address")
    for address in dict.fromkeys(found):
        try:
            return socket.create_connection((address, port), timeout)
        except OSError as failed:
            error = failed
    raise error


class _Limited(io.RawIOBase):
    """The bytes of a connection, until there are too many of them or they take too long."""

    def __init__(self, raw: io.RawIOBase, guard: Guard) -> None:
        self._raw = raw
        self._left = guard.max_bytes
        self._until = time.monotonic() + guard.deadline_s

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if time.monotonic() > self._until:
            raise TimeoutError("deadline: timed out")
        read = self._raw.readinto(buffer)
        self._left -= read or 0
        if self._left < 0:
            raise Refused("too many bytes")
        return read

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, guard: Guard, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._guard = guard
        self.fp = io.BufferedReader(_Limited(self.fp.detach(), guard))

    def begin(self) -> None:
        super().begin()
        if self.length is not None and self.length > self._guard.max_bytes:
            raise Refused("too many bytes")  # before memory is set aside for what is announced
        # img2dataset takes all before a colon for a robot's name, and would overlook `noai, max-image-preview:large`.
        values = self.headers.get_all("X-Robots-Tag", [])
        del self.headers["X-Robots-Tag"]
        for directive in ",".join(values).split(","):
            self.headers["X-Robots-Tag"] = directive.strip()


class _HTTPConnection(http.client.HTTPConnection):
    guard: Guard

    def connect(self) -> None:
        if self.guard.allow_private_addresses:
            super().connect()
        else:
            self.sock = _connect(self.host, self.port, self.timeout)


class _HTTPSConnection(http.client.HTTPSConnection, _HTTPConnection):
    """In this order `HTTPSConnection.connect` gets its socket from ours, and then checks the certificate."""


def _guarded(connection: type[_HTTPConnection], guard: Guard) -> Callable[..., _HTTPConnection]:
    def make(*args: Any, **kwargs: Any) -> _HTTPConnection:
        made = connection(*args, **kwargs)
        made.guard = guard
        made.response_class = functools.partial(_Response, guard=guard)  # type: ignore[assignment]
        return made

    return make


class _Handler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    def __init__(self, guard: Guard) -> None:
        super().__init__()
        self._guard = guard
        self._certificates = ssl.create_default_context()

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_guarded(_HTTPConnection, self._guard), req)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_guarded(_HTTPSConnection, self._guard), req, context=self._certificates)


def opener(guard: Guard) -> urllib.request.OpenerDirector:
    """An opener of http and https alone (no file, ftp, data), each connection guarded, redirects' too."""
    director = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(None if guard.allow_private_addresses else {}),  # a proxy would look names up
        urllib.request.UnknownHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Handler(guard),
    ):
        director.add_handler(handler)
    return director


def _end_with_parent() -> None:
    """The parent holds the other end of stdin: when it is gone, however it went, so is this whole group."""
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)


if __name__ in ("__main__", "__mp_main__"):
    JOB = json.loads(sys.argv[1])
    urllib.request.install_opener(opener(Guard(**JOB["guard"])))


def _begin_ray(cluster: str, processes: int, variables: dict[str, str]) -> None:
    import ray

    if cluster:
        ray.init(cluster, runtime_env={"env_vars": variables})
    else:
        ray.init("local", num_cpus=processes, include_dashboard=False)


def _begin_pyspark(cluster: str, processes: int, variables: dict[str, str]) -> None:
    """A session that img2dataset finds; its own would be on this machine alone."""
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.appName("un2clip download").master(cluster or f"local[{processes}]")
    for name, value in variables.items():
        builder = builder.config(f"spark.executorEnv.{name}", value)
    builder.getOrCreate()


def _guard_workers() -> None:
    """Give workers on other machines the guard: a class of this script is sent whole, with all that it names."""
    library: Any = importlib.import_module("img2dataset.main")  # its name in the package is a function's

    class Guarded(library.Downloader):
        def __call__(self, row: Any) -> Any:
            urllib.request.install_opener(opener(Guard(**JOB["guard"])))
            return super().__call__(row)

    library.Downloader = Guarded


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    begin = {"ray": _begin_ray, "pyspark": _begin_pyspark}.get(JOB["img2dataset"]["distributor"])
    if begin:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # or it tells its makers
        begin(JOB["cluster"], JOB["img2dataset"]["processes_count"], JOB["variables"])
        _guard_workers()
    from img2dataset import download

    download(**JOB["img2dataset"])
