"""A disk that is full, read-only or closed to the user is one sentence, and what was done before is kept."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import WORLD
from tests.unit.test_latents import encode
from un2clip.__main__ import main
from un2clip.errors import DiskRefused, UserError, disks_in_words
from un2clip.evaluation.spreading import Kept
from un2clip.stages import run_stage
from un2clip.training.checkpoints import Checkpoints

MIB = 2**20


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of one MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.getuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder]).returncode:
        pytest.skip("a disk of one MiB needs root, and the right to mount")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def keep(folder: Path) -> Checkpoints:
    return Checkpoints(folder=folder, every=1, keep=2, final=False, tags={})


def test_a_full_disk_keeps_the_checkpoint_before(small: Path) -> None:
    """The second one of 0.6 MiB does not fit: path, what is free, what was wanted; then with room it does."""
    kept, tensors = keep(small / "state"), {"w": torch.zeros(600 * 256)}
    kept.save(1, tensors, [])
    with pytest.raises(DiskRefused) as refused:
        kept.save(2, tensors, [])
    said = str(refused.value)
    assert said.startswith(f"{small}/state") and "no space is left" in said and "0.001 wanted" in said
    assert said.endswith("make room, then the same command goes on") and "\n" not in said
    newest = kept.newest()
    assert newest is not None and newest.step == 1


def test_safetensors_and_python_say_it_alike(small: Path) -> None:
    """A file of the one library, and one of the other; the disk with the least room is named where neither does."""
    for write in (
        lambda: save_file({"w": torch.zeros(MIB)}, small / "a.safetensors"),
        lambda: (small / "b").write_bytes(bytes(2 * MIB)),
    ):
        with pytest.raises(DiskRefused, match=f"^{small}: no space is left .0.00[01] GiB free.; make room"):
            with disks_in_words([small.parent, small]):
                write()
        for each in small.iterdir():
            each.unlink()


def test_a_full_disk_keeps_the_batches_before(small: Path) -> None:
    """Of a benchmark, measured in three batches of 0.4 MiB: with room the third alone is measured again."""
    measured: list[int] = []

    def measure(batch: dict[str, int]) -> torch.Tensor:
        measured.append(batch["number"])
        return torch.full((100 * 1024,), float(batch["number"]))

    def measured_or_kept() -> list[torch.Tensor]:
        return list(Kept(folder=small / "kept")("x", range(3), lambda number: {"number": number}, measure))

    with pytest.raises(DiskRefused, match="no space is left .*make room, then the same command goes on$"):
        measured_or_kept()
    (small / "kept/0/2.partial").unlink(missing_ok=True)
    subprocess.run(["mount", "-o", "remount,size=4m", small], check=True)
    found = measured_or_kept()
    assert measured == [0, 1, 2, 2] and [each[0] for each in found] == [0, 1, 2]


def test_a_full_disk_keeps_the_latents_before(small: Path, tiny) -> None:
    """With room for the first file and half of the second; then the same command makes the others alone."""
    first, *others = sorted(tiny.latents.rglob("*.safetensors"), key=lambda path: path.parent.name != "train")
    made, filler = small / "latents", small / "filler"
    filler.write_bytes(bytes(MIB - first.stat().st_size - others[0].stat().st_size // 2 - 16 * 1024))
    with pytest.raises(DiskRefused, match=f"^{made}\\S*: no space is left .* wanted.; make room, then the same"):
        encode(tiny, made)
    kept = list(made.rglob("*.safetensors"))
    assert len(kept) == 1 and not list(made.rglob("*.partial"))
    stamp = kept[0].stat().st_mtime_ns
    filler.unlink()
    encode(tiny, made)
    assert kept[0].stat().st_mtime_ns == stamp
    found, expected = ({path.name: path.read_bytes() for path in each.glob("train/*")} for each in (made, tiny.latents))
    assert found == expected


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EFBIG])
def test_each_refusal_names_path_and_way_out(tmp_path: Path, number: int) -> None:
    """Also where another error was raised while it was handled; an error of another kind passes."""
    with pytest.raises(DiskRefused, match=f"^{tmp_path}/x: .*, then the same command goes on$"), disks_in_words([]):
        try:
            raise OSError(number, os.strerror(number), str(tmp_path / "x"))
        except OSError as error:
            raise RuntimeError("cannot save") from error
    with pytest.raises(FileNotFoundError), disks_in_words([]):
        (tmp_path / "none").read_text()


def test_a_stage_and_a_command_say_it(tmp_path: Path, small: Path, tiny, capsys) -> None:
    """`shapes` on a full disk leaves nothing behind there; the same call elsewhere is whole. And a read-only one."""
    section = tiny.params["shapes"] | {"train_scenes": 2000}
    with pytest.raises(UserError, match=f"^{small}.*: no space is left"):
        run_stage("shapes", section, seed=1, **{name: small / name for name in WORLD})
    assert not list(small.iterdir())
    subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    with pytest.raises(UserError, match=f"^{small}.*: it is read-only; name a folder that can be written"):
        run_stage("shapes", section, seed=1, **{name: small / name for name in WORLD})
    assert main(["convert", f"--to={small}/x", f"--from={tiny.backbones}/clip"]) == 2
    assert "it is read-only" in capsys.readouterr().err


def test_without_the_right_to_write_it_is_one_sentence(tmp_path: Path) -> None:
    """In a child as another user, for root may do everything."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    if not (child := os.fork()):
        said = ""
        try:
            os.chdir(closed)  # which above it nobody else may enter
            if not os.getuid():
                os.setuid(65534)
            keep(Path("state")).save(1, {"w": torch.zeros(1)}, [])
        except DiskRefused as error:
            said = str(error)
        finally:
            os._exit(0 if said.startswith(f"state: user {os.getuid()} has no permission; give it") else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
