"""Pictures, tars and encoders with bytes changed at random: `python -m tests.robustness.pictures --n 1000 --seed 0`.

Each must end in a result that holds, or in one sentence; a traceback, a difference between two readers of one picture,
a sample that is neither kept nor rejected, or an encoder that is not finite is a failure, and its seed is printed.
"""

import argparse
import io
import json
import random
import shutil
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.toy_clips import write_folder
from un2clip.datasets.images import check_image, decode
from un2clip.datasets.ingesting import Ingest
from un2clip.datasets.loader import generator_view
from un2clip.datasets.shards import read_index, samples
from un2clip.datasets.tars import Rejected
from un2clip.errors import UserError
from un2clip.evaluation.readers import read_tars
from un2clip.models.clip import load_clip
from un2clip.models.converting import Encoder, convert_checkpoint
from un2clip.stages.ingest import ingest

PARAMS = Ingest(
    short_side_px=16, max_megapixels=1.0, max_aspect_ratio=20.0, samples_per_shard=3, heldout_fraction=0.2,
    duplicates="keep", near_distance=4, processes=1, engine="processes",
)  # fmt: skip
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16")


@dataclass
class Found:
    """What became of the inputs of one kind."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def picture(rng: random.Random) -> bytes:
    """A file of a random kind, mode and size; some are strips."""
    mode, form = rng.choice(MODES), rng.choice(("PNG", "JPEG", "WEBP"))
    size = rng.choice(((24, 16), (33, 7), (1, 400), (300, 3), (1, 1)))
    noise = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    wide = noise[..., 0].astype(np.uint16) * 256
    image = Image.fromarray(wide if mode == "I;16" else noise)
    exif = Image.Exif()
    exif[0x0112] = rng.randrange(10)
    for change in (lambda: image if mode == "I;16" else image.convert(mode), lambda: image.convert("RGB")):
        file = io.BytesIO()
        try:
            change().save(file, form, exif=exif)
            return file.getvalue()
        except (OSError, ValueError):
            continue
    return b""


def spoilt(content: bytes, rng: random.Random) -> bytes:
    """Bytes changed, cut off, doubled, moved or filled with zeros; now and then none."""
    data = bytearray(content)
    for _ in range(rng.choice((0, 1, 1, 2, 8, 64))):
        if not data:
            break
        at, n = rng.randrange(len(data)), rng.choice((1, 1, 2, 16, 512))
        kind = rng.randrange(6)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + n] = rng.randbytes(n)
        elif kind == 2:
            del data[at : at + n]
        elif kind == 3:
            data[at:at] = data[at : at + n]
        elif kind == 4:
            data[at : at + n] = bytes(n)
        else:
            del data[at:]
    return bytes(data)


def try_picture(rng: random.Random, folder: Path) -> str:
    """Both readers of one spoilt picture, and a view of what they give."""
    content = spoilt(picture(rng), rng)
    try:
        image, passed, _ = check_image(content, PARAMS.short_side_px, PARAMS.max_megapixels, PARAMS.max_aspect_ratio)
    except Rejected as rejected:
        return f"rejected: {rejected.reason}"
    assert decode(passed).tobytes() == image.tobytes(), "what is written is another picture"
    if min(decode(content).size) <= PARAMS.short_side_px:
        assert decode(content).tobytes() == image.tobytes(), "two readers, two pictures"
    assert generator_view(16)(image).isfinite().all()
    return "kept"


def tar_of(rng: random.Random) -> bytes:
    """Samples, some without text, some of the same name, some hidden, some sorted by their ends."""
    members = []
    for _ in range(rng.randrange(1, 6)):
        key = rng.choice(("a", "b", "d/c", "._x", "00000", "../e", "f\x1b[2J"))
        text = rng.choice((b"a caption", b"", b"caf\xe9", b"a\0b", "Text in Café".encode()))
        members += [(f"{key}.{rng.choice(('jpg', 'PNG', 'webp'))}", picture(rng)), (f"{key}.txt", text)]
        members += [(f"{key}.json", rng.choice((b"{}", b"[", b'{"a": 1}')))] * rng.randrange(2)
    members = sorted(members, key=lambda member: member[0][-3:]) if rng.random() < 0.2 else members
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def try_tar(rng: random.Random, folder: Path) -> str:
    """Two spoilt tars through the whole of `ingest`, and what it wrote through a reader; the first as a benchmark."""
    (folder / "images").mkdir()
    for name in ("0.tar", rng.choice(("1.tar", "1.TAR", "1.tar.gz"))):
        (folder / "images" / name).write_bytes(spoilt(tar_of(rng), rng))
    outcome = "kept some"
    try:
        ingest(PARAMS, images=folder / "images", shards=folder / "shards")
        index = read_index(folder / "shards")
        lines = [json.loads(line) for line in (folder / "shards/rejected.jsonl").read_text().splitlines()]
        assert len(lines) == index.read - index.kept, "a sample is neither kept nor listed"
        kept = [each.key for split, n in index.splits.items() if n for each in samples(folder / "shards" / split)]
        assert len(kept) == len(set(kept)) == index.kept, "a key twice, or a sample lost"
    except UserError as error:
        assert str(error).isprintable(), "a sentence with control characters"
        outcome = "one sentence"
    try:
        for _, picture, _ in read_tars([folder / "images/0.tar"], "txt"):
            picture.read()
    except UserError:
        pass
    return outcome


def try_encoder(rng: random.Random, folder: Path) -> str:
    """A folder of a CLIP, one of its files spoilt, loaded and imported."""
    shutil.copytree(folder.parent / "clip", folder / "clip")
    path = rng.choice(sorted((folder / "clip").iterdir()))
    path.write_bytes(spoilt(path.read_bytes(), rng) if path.suffix == ".json" else spoilt_weights(path, rng))
    outcomes = []
    for read in (load_clip, lambda place: convert_checkpoint(encoder(place), folder / "out")):
        try:
            clip = read(folder / "clip")
            assert all(value.isfinite().all() for value in clip.model.parameters()), "not finite, and loaded"
            clip.embed(torch.zeros(1, 3, *clip.image_size))
            outcomes.append("loaded")
        except UserError:
            outcomes.append("one sentence")
    return " and ".join(outcomes)


def spoilt_weights(path: Path, rng: random.Random) -> bytes:
    """Mostly in the header: of the many bytes of weights nearly all may be any."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return spoilt(content[:end], rng) + content[end:] if rng.random() < 0.8 else spoilt(content, rng)


def encoder(folder: Path) -> Encoder:
    return Encoder(weights=str(folder), architecture="", revision="", sha256={}, visual="")


KINDS: dict[str, Callable[[random.Random, Path], str]] = {
    "pictures": try_picture, "tars": try_tar, "encoders": try_encoder,
}  # fmt: skip


def run(kind: str, n: int, seed: int) -> Found:
    """So many inputs of a kind, each by a seed of its own."""
    found = Found()
    with tempfile.TemporaryDirectory() as place:
        if kind == "encoders":
            write_folder(Path(place) / "clip", "gelu")
        for i in range(n):
            folder = Path(place) / "one"
            folder.mkdir()
            try:
                with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                    found.outcomes[KINDS[kind](random.Random(f"{kind} {seed} {i}"), folder)] += 1
            except Exception as error:
                found.failures.append(f"{kind} seed {seed}, number {i}: {type(error).__name__}: {error}"[:300])
            shutil.rmtree(folder)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--n", type=int, default=100, help="inputs of each kind (encoders: a tenth)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print("| tried | n | failures | what happened |\n|---|---|---|---|")
    failed = False
    for kind in KINDS:
        n = max(1, args.n // 10) if kind == "encoders" else args.n
        found = run(kind, n, args.seed)
        happened = ", ".join(f"{outcome} {count}" for outcome, count in found.outcomes.most_common())
        print(f"| {kind} | {n} | {len(found.failures)} | {happened} |", *found.failures, sep="\n", flush=True)
        failed = failed or bool(found.failures)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
