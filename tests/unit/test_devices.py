import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from un2clip.devices import has_bf16, pick_device, warn_of_bf16
from un2clip.errors import UserError
from un2clip.training.config import single_process


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_said() -> None:
    """auto falls back to the processor; cuda does not."""
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="device is cuda and torch .* sees no GPU; set it to auto or cpu"):
        pick_device("cuda")


def test_unknown_device() -> None:
    """A word that is none of the three is refused with the list."""
    with pytest.raises(UserError, match="device must be one of auto, cpu, cuda, got 'gpu'"):
        pick_device("gpu")


@pytest.mark.parametrize(
    ("said", "gpus", "device", "processes"),
    [(0, 0, "auto", 1), (0, 1, "auto", 1), (0, 8, "cuda", 8), (0, 8, "cpu", 1), (2, 8, "cuda", 2), (2, 0, "cpu", 2)],
)
def test_a_process_for_each_gpu(monkeypatch, said: int, gpus: int, device: str, processes: int) -> None:
    """`processes: 0` follows the GPUs that are visible, where they are to be used; another number stands."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert dataclasses.replace(single_process(batch_size=8), processes=said).processes_here(device) == processes


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file(), reason="only Linux lists a processor's instructions there")
def test_bf16_that_is_imitated_is_said(capsys) -> None:
    """Once, and only by a processor that the kernel lists without such instructions; fp32 says nothing."""
    listed = {"avx512_bf16", "amx_bf16", "bf16"} & set(Path("/proc/cpuinfo").read_text().split())
    cpu = torch.device("cpu")
    assert has_bf16(cpu) == bool(listed)
    warn_of_bf16.cache_clear()
    single_process(batch_size=8).autocast(cpu)
    assert capsys.readouterr().err == ""
    for _ in range(2):
        dataclasses.replace(single_process(batch_size=8), precision="bf16").autocast(cpu)
    assert capsys.readouterr().err.count("set precision to fp32") == (0 if listed else 1)


@pytest.mark.parametrize("own", [None, "ACTIVE"])
def test_threads_that_wait_sleep_unless_the_user_says_otherwise(own: str | None) -> None:
    """What libgomp itself says that it reads: the policy is there before torch loads it."""
    code = "import un2clip, torch; torch.set_num_threads(2)"
    given = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    given |= {"OMP_DISPLAY_ENV": "TRUE"} | ({"OMP_WAIT_POLICY": own} if own else {})
    shown = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True, check=True).stderr
    assert f"OMP_WAIT_POLICY = '{own or 'PASSIVE'}'" in shown
