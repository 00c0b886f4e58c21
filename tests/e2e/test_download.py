"""`un2clip download` against a web server on this machine: what comes, what does not, and that no more is asked."""

import fcntl
import hashlib
import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.web import nothing, serving
from un2clip.__main__ import main
from un2clip.config import FILES, merge, read_params
from un2clip.stages import run_stage

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ROOT / ".venv-download"
pytestmark = pytest.mark.skipif(
    not (ENVIRONMENT / "img2dataset.lock.sha256").is_file(), reason="needs .venv-download: make download-env"
)
NUMBERS = {"processes": 1, "threads": 4, "timeout_s": 1, "deadline_s": 2.0, "retries": 1, "samples_per_shard": 100}
LIMITS = {"max_bytes": 100_000, "max_megapixels": 1.0, "allow_private_addresses": True}


def picture(name: str, width: int = 64, height: int = 48) -> bytes:
    """An image of noise that depends on its name, encoded as the name ends."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4])
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[name.rpartition(".")[2]])
    return file.getvalue()


def bomb(side: int) -> bytes:
    """A valid grey PNG of side x side pixels in a few kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(side * (side + 1)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


class Site:
    """Answers by path; `/slow` and `/flaky` are well again once `healed`."""

    def __init__(self) -> None:
        self.healed = False
        self.flaky = 0

    def __call__(self, handler) -> None:
        try:
            self._answer(handler, handler.path[1:])
        except OSError:
            pass  # who asked has gone

    def _answer(self, handler, path: str) -> None:
        if path.startswith("good") or (path in ("slow.jpg", "drip.jpg") and self.healed):
            return send(handler, picture(path))
        if path == "flaky.jpg":
            self.flaky += 1
            return send(handler, picture(path)) if self.flaky > 1 else handler.send_error(503)
        match path:
            case "moved":
                handler.send_response(301)
                handler.send_header("Location", "/good/moved.jpg")
                handler.end_headers()
            case "gone":
                handler.send_error(410)
            case "down":
                handler.send_error(500)
            case "slow.jpg":
                time.sleep(2.5)
            case "drip.jpg":
                handler.send_response(200)
                handler.end_headers()
                for byte in picture(path):
                    handler.wfile.write(bytes([byte]))
                    time.sleep(0.2)
            case "page":
                send(handler, b"<html><body>an image? no</body></html>", "text/html")
            case "bomb.png":
                send(handler, bomb(4000))
            case "huge":
                handler.send_response(200)
                handler.send_header("Content-Length", str(10**12))
                handler.end_headers()
            case "endless":
                handler.send_response(200)
                handler.end_headers()
                while True:
                    handler.wfile.write(bytes(10_000))
            case "ours.jpg":
                send(handler, picture(path), robots="noai, noindex")
            case "mine.jpg":
                send(handler, picture(path), robots="NoAI, max-image-preview:large")
            case "yours.jpg":
                send(handler, picture(path), robots="otherbot: noai")
            case "dot.png":
                send(handler, picture(path, 8, 8))
            case "banner.png":
                send(handler, picture(path, 400, 40))
            case _:
                handler.send_error(404)


def send(handler, body: bytes, kind: str = "image/any", robots: str = "all") -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(body)))
    handler.send_header("X-Robots-Tag", robots)
    handler.end_headers()
    handler.wfile.write(body)


#: Path -> what it becomes in the first run, and how often it is asked for in it (once, and once more if it may pass).
SITE = {
    "good/1.jpg": ("success", 1),
    "good/2.png": ("success", 1),
    "good/3.webp": ("success", 1),
    "moved": ("success", 1),
    "flaky.jpg": ("success", 2),
    "missing": ("http 404", 1),
    "gone": ("http 410", 1),
    "down": ("http 500", 2),
    "slow.jpg": ("timeout", 2),
    "drip.jpg": ("timeout", 2),
    "page": ("not an image", 1),
    "bomb.png": ("too large", 1),
    "huge": ("too large", 1),
    "endless": ("too large", 1),
    "ours.jpg": ("opt-out", 1),
    "mine.jpg": ("opt-out", 1),
    "yours.jpg": ("success", 1),
    "dot.png": ("too small", 1),
    "banner.png": ("too long", 1),
}
#: What becomes of all rows: SITE's, a file of this machine, a closed port, and a line that is none.
COUNTS = {
    "success": 6, "http 404": 1, "http 410": 1, "http 500": 1, "timeout": 2, "not an image": 1, "too large": 3,
    "opt-out": 2, "too small": 1, "too long": 1, "not a web address": 1, "connection error": 1, "malformed row": 1,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """A folder to work in: the files of numbers, and an overlay with the tests' numbers."""
    for name in FILES:
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "overlay.yaml").write_text(yaml.safe_dump({"download": NUMBERS | LIMITS}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def words(*more: str, overlay: str = "overlay.yaml") -> list[str]:
    return ["download", "list.tsv", f"--environment={ENVIRONMENT}", f"--overlay={overlay}", *more]


def members(folder: Path) -> dict[str, bytes]:
    """Every member of every tar; no name comes twice."""
    found: dict[str, bytes] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                assert member.name not in found
                found[member.name] = tar.extractfile(member).read()
    return found


def captions(folder: Path) -> set[str]:
    return {content.decode() for name, content in members(folder).items() if name.endswith(".txt")}


def test_what_comes_and_what_does_not(folder: Path, capsys) -> None:
    """Counts are the hand-made table's, nothing is asked twice without need, and a second run asks for nothing."""
    with serving(Site()) as (port, asked):
        lines = [f'a "{path}\thttp://127.0.0.1:{port}/{path}' for path in SITE]
        lines += ["a file\tfile:///etc/hostname", "closed\thttp://127.0.0.1:9/x.jpg", "no address"]
        (folder / "list.tsv").write_text("\n".join(lines) + "\n")
        assert main(words()) == 0
        report = json.loads((folder / "data/list.report.json").read_text())
        assert report["outcomes"] == COUNTS and report["rows"] == len(lines) == sum(COUNTS.values())
        assert report["may_pass"] == 4
        expected = [f"/{path}" for path, (_, times) in SITE.items() for _ in range(times)] + ["/good/moved.jpg"]
        assert sorted(asked) == sorted(expected)
        images = folder / "data/list"
        successes = {f'a "{path}' for path, (outcome, _) in SITE.items() if outcome == "success"}
        assert captions(images) == successes
        assert picture("good/1.jpg") in members(images).values()  # a JPEG stays as it came, byte for byte

        asked.clear()
        assert main(words()) == 0
        assert asked == [] and "is complete" in capsys.readouterr().out


def test_retry_asks_what_may_pass(folder: Path) -> None:
    """--retry of a finished folder asks for what timed out, and no more; keys do not collide; ingest keeps all."""
    site = Site()
    paths = ["good/1.jpg", "slow.jpg", "missing", "drip.jpg"]
    (folder / "overlay.yaml").write_text(yaml.safe_dump({"download": NUMBERS | LIMITS | {"retries": 0}}))
    with serving(site) as (port, asked):
        (folder / "list.tsv").write_text("".join(f"{path}\thttp://127.0.0.1:{port}/{path}\n" for path in paths))
        assert main(words()) == 0
        before = members(folder / "data/list")
        assert {name.rpartition(".")[2] for name in before} == {"jpg", "txt", "json"} and len(before) == 3
        asked.clear()
        site.healed = True
        assert main(words("--retry")) == 0
        assert sorted(asked) == ["/drip.jpg", "/slow.jpg"]
    images = folder / "data/list"
    assert before.items() <= members(images).items()
    report = json.loads((folder / "data/list.report.json").read_text())
    assert report["outcomes"] == {"success": 3, "http 404": 1} and report["may_pass"] == 0
    run_stage("ingest", read_params(ROOT / "params.yaml")["ingest"], images=images, shards=folder / "shards")
    index = json.loads((folder / "shards/index.json").read_text())
    assert (index["read"], index["kept"]) == (3, 3)


def test_a_killed_run_goes_on(folder: Path) -> None:
    """Killed, the command takes img2dataset with it; the next run asks for the unfinished tars' rows only."""
    held, release = threading.Event(), threading.Event()

    def answer(handler) -> None:
        if handler.path == "/good/3.jpg" and not release.is_set():
            held.set()
            release.wait(60)
        Site()(handler)

    numbers = NUMBERS | LIMITS | {"threads": 1, "samples_per_shard": 2, "timeout_s": 60}
    (folder / "overlay.yaml").write_text(yaml.safe_dump({"download": numbers}))
    with serving(answer) as (port, asked):
        (folder / "list.tsv").write_text("".join(f"{i}\thttp://127.0.0.1:{port}/good/{i}.jpg\n" for i in range(6)))
        command = subprocess.Popen([sys.executable, "-m", "un2clip", *words()], cwd=folder, stderr=subprocess.DEVNULL)
        try:
            assert held.wait(60), "the second tar's second row was never asked for"
            workers = processes_with(str(folder))
            assert workers
        finally:
            command.send_signal(signal.SIGKILL)
            command.wait()
        until = time.monotonic() + 20
        while left := [pid for pid in workers if pid in processes_with(str(folder))]:
            assert time.monotonic() < until, f"img2dataset goes on without its parent: {left}"
            time.sleep(0.05)
        assert sorted(asked) == [f"/good/{i}.jpg" for i in range(4)] and not (folder / "data/list").exists()
        asked.clear()
        release.set()
        assert main(words()) == 0
        assert sorted(asked) == [f"/good/{i}.jpg" for i in range(2, 6)]
    assert captions(folder / "data/list") == set("012345")
    assert not list(folder.glob("data/*.partial"))


def processes_with(word: str) -> list[int]:
    """Running processes with a word in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word in path.read_bytes().decode(errors="replace") and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
        except OSError:
            pass
    return found


def test_private_addresses_are_refused_by_default(folder: Path, capsys) -> None:
    """However loopback is written, and through whatever proxy: refused, and the server is not asked once."""
    refusing = merge({"download": NUMBERS | LIMITS}, {"download": {"allow_private_addresses": False}})
    (folder / "overlay.yaml").write_text(yaml.safe_dump(refusing))
    hosts = ["127.0.0.1", "localhost", "[::1]", "2130706433", "0x7f.1", "0.0.0.0", "[::ffff:127.0.0.1]", "10.0.0.1"]
    with serving(nothing) as (port, asked), pytest.MonkeyPatch.context() as patch:
        patch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        urls = [f"{scheme}://{host}:{port}/" for scheme in ("http", "https") for host in hosts]
        (folder / "list.tsv").write_text("".join(f"x\t{url}\n" for url in urls))
        assert main(words()) == 0
        assert asked == []
    report = json.loads((folder / "data/list.report.json").read_text())
    assert report["outcomes"] == {"refused address": len(urls)}


def test_by_ray_the_guard_goes_along(folder: Path) -> None:
    """Limits, opt-out and refused addresses in Ray's workers, which import nothing of ours; rows are counted alike."""
    if subprocess.run([ENVIRONMENT / "bin/python", "-I", "-c", "import ray"], capture_output=True).returncode:
        pytest.skip("ray is not installed beside img2dataset")
    paths = ["good/1.jpg", "good/2.png", "missing", "endless", "mine.jpg", "bomb.png"]
    ray = {"download": NUMBERS | LIMITS | {"distributor": "ray", "retries": 0, "processes": 2, "samples_per_shard": 2}}
    with serving(Site()) as (port, asked):
        (folder / "list.tsv").write_text("".join(f"{path}\thttp://127.0.0.1:{port}/{path}\n" for path in paths))
        for name, allow in (("refused", False), ("fetched", True)):
            numbers = merge(ray, {"download": {"allow_private_addresses": allow}})
            (folder / "overlay.yaml").write_text(yaml.safe_dump(numbers))
            assert main(words(f"--to={name}")) == 0
            assert sorted(asked) == (sorted(f"/{path}" for path in paths) if allow else [])
    said = {
        name: json.loads((folder / f"{name}.report.json").read_text())["outcomes"] for name in ("refused", "fetched")
    }
    assert said["refused"] == {"refused address": len(paths)}
    assert said["fetched"] == {"success": 2, "http 404": 1, "too large": 2, "opt-out": 1}
    assert captions(folder / "fetched") == set(paths[:2])


@pytest.mark.parametrize("distributor", ["pyspark", "ray"])
def test_a_distributor_that_is_not_installed_is_named(folder: Path, capsys, distributor: str) -> None:
    (folder / "list.tsv").write_text("x\thttp://127.0.0.1:9/\n")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "env"], check=True)
    shutil.copy(ENVIRONMENT / "img2dataset.lock.sha256", "env")
    (folder / "overlay.yaml").write_text(yaml.safe_dump({"download": {"distributor": distributor}}))
    assert main(words("--environment=env")) == 2
    said = f"download.distributor is {distributor}, which is not installed beside img2dataset: env/bin/python -m"
    assert said in capsys.readouterr().err


def test_mistakes_are_one_line(folder: Path, capsys) -> None:
    """Another list for the same folder, a folder that is not ours, and a second download at once are refused."""
    (folder / "list.tsv").write_text("x\thttp://127.0.0.1:9/\n")
    work = folder / "data/list.partial"
    work.mkdir(parents=True)
    source = [{"list": "list.tsv", "sha256": hashlib.sha256((folder / "list.tsv").read_bytes()).hexdigest()}]
    with (work / "source.yaml").open("w") as file:
        print(json.dumps(source), file=file, flush=True)
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main(words()) == 2
        assert "another download writes into data/list.partial; wait for it" in capsys.readouterr().err
    (folder / "list.tsv").write_text("y\thttp://127.0.0.1:9/\n")
    assert main(words()) == 2
    assert "list.partial was not downloaded from these lists" in capsys.readouterr().err
    work.rename(folder / "data/list")
    assert main(words()) == 2
    assert "was not downloaded from these lists; delete it or name another folder" in capsys.readouterr().err
    assert main(words("--to=data/a[b]")) == 2
    assert "for patterns; name another folder" in capsys.readouterr().err


def test_an_environment_that_does_not_work_is_said(folder: Path, capsys) -> None:
    """Where img2dataset cannot start, the last line of its log is the message, and the next run begins again."""
    (folder / "list.tsv").write_text("x\thttp://127.0.0.1:9/\n")
    python = folder / "env/bin/python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    shutil.copy(ENVIRONMENT / "img2dataset.lock.sha256", folder / "env")
    assert main(words("--environment=env")) == 2
    said = capsys.readouterr().err
    assert "img2dataset ended with status 1: ModuleNotFoundError: No module named 'img2dataset'; see data/list" in said
    assert not (folder / "data/list").exists()


def test_the_command_runs_where_img2dataset_is() -> None:
    """Beside img2dataset, without torch or MLflow, as in the download image: the same command, and no further one."""
    python = ENVIRONMENT / "bin/python"
    environment = {"PYTHONPATH": str(ROOT / "src"), "PATH": os.environ["PATH"]}
    command = [python, "-m", "un2clip", "download"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"download: img2dataset is run by {python}\n"
