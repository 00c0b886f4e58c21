"""Which process is gone, and a stage that is asked to stop."""

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from un2clip import processes
from un2clip.errors import Terminated, raise_stop


def test_a_process_is_gone_once_it_has_ended_and_not_before() -> None:
    """A child while it lives, as a zombie whose parent has not asked, and after; as text and back."""
    child = subprocess.Popen(["sleep", "60"])
    at = dataclasses.replace(processes.here(), pid=child.pid, start=processes._start(child.pid))
    assert not at.gone and processes.parse(str(at)) == at
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert at.gone, "a zombie does nothing more"
    child.wait()
    assert at.gone


def test_a_number_that_was_given_again_is_another_process() -> None:
    """This process's number with another beginning is one that is gone; this very one is not."""
    me = processes.here()
    assert not me.gone and dataclasses.replace(me, start="1").gone


@pytest.mark.parametrize("field", ["host", "boot", "namespace"])
def test_elsewhere_nothing_is_proved(field: str) -> None:
    """On another machine, after another boot, or in another container the number says nothing."""
    assert not dataclasses.replace(processes.here(), start="1", **{field: "other"}).gone


@pytest.mark.parametrize("text", ["", "a b c", "host boot namespace one 2", "host boot namespace -1 2"])
def test_what_is_no_process_is_none(text: str) -> None:
    assert processes.parse(text) is None


def test_the_first_sigterm_is_an_exception_and_the_second_ends() -> None:
    """What stands in a finally is done; outside nothing has changed; a second signal meanwhile ends the process."""
    before = signal.getsignal(signal.SIGTERM)
    done = []
    with pytest.raises(Terminated) as stopped, processes.terminable():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            done.append(signal.getsignal(signal.SIGTERM))
    assert stopped.value.code == 128 + signal.SIGTERM and done == [before]
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.fixture()
def own_ctrl_c() -> Iterator[None]:
    """Python's own handler of Ctrl-C: other tests' libraries leave theirs in the process."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_signal_waits_for_the_end_of_what_must_not_be_cut(own_ctrl_c) -> None:
    """Neither stops what is within, and each acts right after it."""
    for number, error in ((signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)):
        done = []
        with pytest.raises(error), processes.terminable(), processes.deferring():
            os.kill(os.getpid(), number)
            done.append(number)
        assert done == [number]


@pytest.mark.parametrize("stop", [Terminated(signal.SIGTERM), KeyboardInterrupt()])
def test_a_stop_behind_another_error_is_found(stop: BaseException) -> None:
    """As a library leaves it that is interrupted while it handles something; other errors pass."""
    try:
        try:
            raise stop
        except BaseException:
            raise ValueError("the connection is closed")  # noqa: B904
    except ValueError as error:
        with pytest.raises(type(stop)) as raised:
            raise_stop(error)
    assert raised.value is stop
    raise_stop(ValueError("alone"))


def test_uncaught_it_is_the_shells_exit_status() -> None:
    """As in Kubeflow's executor, which knows nothing of it: 143, and no traceback."""
    script = (
        "import os, signal; from un2clip import processes\n"
        "with processes.terminable(): os.kill(os.getpid(), signal.SIGTERM)"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (143, "")
