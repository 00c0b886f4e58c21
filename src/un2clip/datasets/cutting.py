"""The second map of `ingest`: a final shard from its plan, of bytes that were checked before."""

import dataclasses
import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path

from un2clip.config import read_record
from un2clip.datasets.captions import WordCounts
from un2clip.datasets.deciding import Planned
from un2clip.datasets.parts import read_lines
from un2clip.datasets.shards import END, Shard, tar_member
from un2clip.errors import UserError, disks_in_words
from un2clip.files.outputs import write_json
from un2clip.hashes import file_sha256


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A shard to be written, as it is handed to a worker; its text is split/shard.tar.

    Attributes:
        plan: file of `deciding`.
        parts: folder of the data files.
        shard: the tar to be.
    """

    plan: Path
    parts: Path
    shard: Path

    def __str__(self) -> str:
        return f"{self.shard.parent.name}/{self.shard.name}"

    def written(self) -> "Written | None":
        """What is said of the shard that was written by this plan."""
        try:
            written = read_record(Written, self.plan.with_suffix(".json"), "ingest")
        except UserError:
            return None
        return written if written.plan == file_sha256(self.plan) else None

    def is_done(self) -> bool:
        """Whether the shard is there, whole; it is read."""
        written = self.written()
        return written is not None and self.shard.is_file() and file_sha256(self.shard) == written.shard.sha256


@dataclass(frozen=True, kw_only=True)
class Written:
    """What is kept of a finished shard beside its plan.

    Attributes:
        plan: hash of the plan.
        shard: as the index lists it.
        words: of its captions.
    """

    plan: str
    shard: Shard
    words: WordCounts


def write_shard(cut: Cut) -> None:
    """Write a shard; it is there whole or not at all.

    Raises:
        UserError: a part is not what was written.
        DiskRefused: the disk is full; what was made before is kept.
    """
    sha256, captions, samples, data, name = hashlib.sha256(), list[str](), 0, None, ""
    partial = cut.shard.with_suffix(".partial")
    with disks_in_words([cut.shard.parent]):
        cut.shard.parent.mkdir(parents=True, exist_ok=True)
        try:
            with cut.plan.open("rb") as lines, partial.open("wb") as tar:
                for sample in read_lines(Planned, lines):
                    if data is None or name != sample.data:
                        if data is not None:
                            data.close()
                        name = sample.data
                        data = (cut.parts / name).open("rb")
                    data.seek(sample.at)
                    content = data.read(sum(sample.members.values()))
                    if zlib.crc32(content) != sample.crc:
                        raise UserError(f"{data.name} is not what was written; delete {cut.parts}, and run it again")
                    for extension, size in sample.members.items():
                        member, content = content[:size], content[size:]
                        if extension == "txt" and member:
                            captions.append(member.decode())
                        block = tar_member(f"{sample.key}.{extension}", member)
                        tar.write(block)
                        sha256.update(block)
                    samples += 1
                tar.write(END)
                sha256.update(END)
                size = tar.tell()
        except BaseException:
            partial.unlink(missing_ok=True)  # a full disk is not kept full by half a shard
            raise
        finally:
            if data is not None:
                data.close()
        partial.replace(cut.shard)
        shard = Shard(name=cut.shard.name, samples=samples, bytes=size, sha256=sha256.hexdigest())
        written = Written(plan=file_sha256(cut.plan), shard=shard, words=WordCounts.of(captions))
        write_json(cut.plan.with_suffix(".json"), dataclasses.asdict(written))
