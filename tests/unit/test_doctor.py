"""`un2clip doctor`: each finding by a machine that is that way."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from un2clip import doctor
from un2clip.__main__ import main

DVC = [sys.executable, "-m", "dvc"]
SECRET = "hush-hush"


@pytest.fixture
def server() -> Iterator[str]:
    """A server on loopback that answers /CODE with that status."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(int(self.path.strip("/") or 200))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as answering:
        Thread(target=answering.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{answering.server_port}"
        answering.shutdown()


@pytest.mark.parametrize(("path", "state"), [("", "ok"), ("/401", "ok"), ("/404", "ok"), ("/500", "FAIL")])
def test_a_service_that_answers_is_there_unless_it_is_broken(server: str, path: str, state: str) -> None:
    """Asking without credentials, a refusal is an answer too; a server's error is not."""
    assert doctor.service("X", f"http://me:{SECRET}@{server}{path}").state == state


@pytest.mark.parametrize(
    ("url", "state"),
    [
        (f"http://me:{SECRET}@127.0.0.1:9/mlflow", "FAIL"),
        (f"http://me:{SECRET}/x@127.0.0.1:9/", "FAIL"),
        (f"http://[::1/?token={SECRET}", "FAIL"),
        (f"sqlite:////proc/{doctor.__name__}/mlflow.db", "FAIL"),
        ("sqlite:////tmp/mlflow.db", "ok"),
        (f"postgresql://me:{SECRET}@db/mlflow", "ok"),
        (f"file:///etc/passwd?{SECRET}", "ok"),
    ],
)
def test_an_address_is_looked_at_by_its_kind_and_never_shown_with_its_password(url: str, state: str) -> None:
    """Nobody listens on port 9; a file store is a folder; what is no web address is not opened."""
    check = doctor.service("X", url)
    assert check.state == state and SECRET not in str(check)
    assert (state == "FAIL") == bool(check.fix)


def test_space_and_right_to_write(tmp_path: Path) -> None:
    """Both are asked of the nearest folder that exists; an absurd amount, or /proc, fails and says how to mend it."""
    below = tmp_path / "not" / "yet"
    assert doctor.writable(below).state == "ok" and doctor.space(below, 1e-6).state == "ok"
    assert not below.exists() and not list(tmp_path.iterdir())
    full, closed = doctor.space(below, 1e9), doctor.writable(Path("/proc/un2clip"))
    assert full.state == closed.state == "FAIL" and full.fix and closed.fix


@pytest.mark.parametrize(
    ("limit", "state", "message"),
    [("1073741824", "warn", "1.0 GiB, the container's limit"), ("max", "ok", "available"), (str(2**63), "ok", "")],
)
def test_memory_is_the_containers_where_that_is_less(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: str, state: str, message: str
) -> None:
    """Both kinds of cgroup say "no limit" in their own way: a word, or a number beyond all memory."""
    (tmp_path / "limit").write_text(limit + "\n")
    monkeypatch.setattr(doctor, "CGROUP_LIMITS", (tmp_path / "limit", tmp_path / "none"))
    monkeypatch.setattr(doctor, "MEMORY_GIB", 1.5)
    check = doctor.memory()
    assert check.state == state and message in check.message


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    """A package, a command, shared memory: found or not, and a needed one that is not found fails."""
    states = [check.state for check in doctor.packages(["pytest", "no-such-package"], state="FAIL")]
    assert states == ["ok", "FAIL"]
    assert doctor.tool("python", needed=True).state == "ok"
    assert doctor.tool("no-such-tool", needed=True).state == "FAIL"
    assert doctor.tool("no-such-tool", needed=False).state == "warn"
    assert doctor.shared_memory(tmp_path / "shm").state == "warn"


def test_a_zip_of_the_project_has_no_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """DVC itself is asked before and after the command that is named; below a repository, or told so, all is well."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dvc").mkdir()
    config = tmp_path / ".dvc/config"
    config.write_text("[core]\n    analytics = false\n")
    (tmp_path / "dvc.yaml").write_text("stages:\n  a:\n    cmd: 'true'\n")

    def asked() -> bool:
        return subprocess.run([*DVC, "repro", "--dry"], capture_output=True).returncode == 0

    lacking = next(check for check in doctor.examine(torch=False) if check.name == "repository")
    assert lacking.state == "FAIL" and "`git init`" in lacking.fix and not asked()
    subprocess.run(["git", "init", "-q"], check=True)
    (tmp_path / "below").mkdir()
    assert [doctor.repository(each).state for each in (tmp_path, tmp_path / "below")] == ["ok", "ok"] and asked()
    shutil.rmtree(tmp_path / ".git")
    config.write_text("[core]\n    no_scm = true\n")
    assert doctor.repository(tmp_path).state == "ok" and asked()


def test_gpus_are_what_the_driver_lists(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each line of nvidia-smi is one; where torch cannot use them, a warning says so; without the command, none."""
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho 'NVIDIA H100, 81559 MiB, 580.1'\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    listed, torch = doctor.gpus(torch=True)
    assert listed.message == "NVIDIA H100, 81559 MiB, driver 580.1" and torch.state == "warn"
    driver.unlink()
    (none,) = doctor.gpus(torch=True)
    assert none.state == "ok" and none.message.startswith("none")


@pytest.mark.parametrize("words", [["doctor", "--quick"], ["doctor", "--quick", "--json"]])
def test_status_is_1_if_something_needed_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], server: str, words: list[str]
) -> None:
    """With a store that answers 0, with one that is down 1; the JSON holds the same findings as the lines."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{SECRET}@{server}")
    assert main(words) == 0
    well = capsys.readouterr().out
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{SECRET}@127.0.0.1:9")
    with pytest.raises(SystemExit) as stopped:
        main(words)
    ill = capsys.readouterr().out
    assert stopped.value.code == 1 and SECRET not in well + ill and "FAIL" in ill and "FAIL" not in well
    if "--json" in words:
        assert {"name", "state", "message", "fix"} == set(json.loads(ill)[0])


def test_help_and_the_quick_check_leave_torch_alone() -> None:
    """A health check runs every minute and `--help` is typed by hand: importing torch takes seconds."""
    script = (
        "import sys; from un2clip.__main__ import main; main(['doctor', '--quick']); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
