"""Images of caption-url lists, such as CC3M's, as the tars that `ingest` reads; downloaded by img2dataset.

img2dataset counts a shard as done when all its rows were tried, whatever became of them. So what is still to be had
is reckoned here, row by row, from its own records, and every start of img2dataset extends the same folder by the rows
that are missing: after a kill, for another attempt, or later.
"""

import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet
from tqdm import tqdm

from un2clip.config import at_least
from un2clip.errors import UserError
from un2clip.files.outputs import only_one
from un2clip.files.texts import parse_json, read_text
from un2clip.hashes import file_sha256
from un2clip.sources.download.environment import interpreter
from un2clip.sources.download.rows import finished, may_pass, outcomes, read_lists

#: What img2dataset's processes get of our environment: no tokens, no keys.
_ENVIRONMENT = (
    "HOME",
    "LANG",
    "PATH",
    "TMPDIR",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "http_proxy",
    "https_proxy",
    "no_proxy",
)
_WORKER = Path(__file__).with_name("worker.py")
_SOURCE, _LOG, _PENDING = "source.yaml", "log.txt", "pending.parquet"


@dataclass(frozen=True, kw_only=True)
class Download:
    """The section `download` of download.yaml, where the meanings and units are."""

    distributor: Literal["multiprocessing", "pyspark", "ray"]
    cluster: str
    processes: int
    threads: int
    timeout_s: int
    deadline_s: float
    retries: int
    samples_per_shard: int
    max_bytes: int
    max_megapixels: float
    min_side_px: int
    max_aspect_ratio: float
    short_side_px: int
    jpeg_quality: int
    opt_out: tuple[str, ...]
    user_agent: str
    allow_private_addresses: bool

    def __post_init__(self) -> None:
        at_least(self, 1, "processes", "threads", "timeout_s", "samples_per_shard", "max_bytes", "max_aspect_ratio")
        at_least(self, 0, "retries", "min_side_px", "short_side_px")
        for name in ("deadline_s", "max_megapixels"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.cluster and self.distributor == "multiprocessing":
            raise ValueError(f"cluster must be empty where distributor is multiprocessing, got {self.cluster!r}")
        if not 1 <= self.jpeg_quality <= 100:
            raise ValueError(f"jpeg_quality must be 1 to 100, got {self.jpeg_quality}")


def download(
    params: Download,
    lists: Sequence[Path],
    *,
    to: Path,
    environment: Path,
    caption_column: str,
    url_column: str,
    retry: bool,
) -> None:
    """Download what is missing of the lists' images; write the counts to `TO.report.json`, beside the folder.

    Args:
        params: the section `download`.
        lists: caption-url files; see `rows.read_lists`.
        to: folder of tars with img2dataset's records; appears when every row was tried.
        environment: img2dataset's own; made where it is not yet.
        retry: of a finished folder, try those rows again whose failure may have passed.

    Raises:
        UserError: a list cannot be read, `to` is of other lists or not of this command, or img2dataset gave up.
    """
    if set("*?[]") & set(str(to.resolve())) or "::" in str(to.resolve()):
        raise UserError(f"--to={to}: img2dataset takes * ? [ ] and :: of a path for patterns; name another folder")
    table, malformed = read_lists(lists, caption_column, url_column)
    source = json.dumps([{"list": path.name, "sha256": file_sha256(path)} for path in lists]) + "\n"
    work = _begin(to, source, retry, len(table))
    if work is None:
        print(f"download: {to} is complete, {to}.report.json says of what; --retry tries again what may have passed")
        return
    python = interpreter(environment, params.distributor)
    with only_one(work / _SOURCE, f"another download writes into {work}; wait for it"):
        for attempt in range(params.retries + 1):
            _remove_unfinished(work)
            pending = _pending(work, table, again=retry or attempt > 0)
            if len(pending):
                pa.parquet.write_table(pending, work / _PENDING)
                _img2dataset(params, work, python, len(pending), attempt)
        _remove_unfinished(work)
        became = Counter(outcomes(work, len(table)))
        if missing := became.pop("", 0):
            raise UserError(f"img2dataset left {missing} rows untried, {work / _LOG} may say why; again to go on")
        (work / _LOG).unlink(missing_ok=True)
        (work / _PENDING).unlink(missing_ok=True)
        became |= Counter({"malformed row": malformed} if malformed else {})
        _report(to, became, source, params)
        work.rename(to)
    passing = sum(count for name, count in became.items() if may_pass(name))
    said = "; ".join(f"{name} {count}" for name, count in became.most_common())
    print(
        f"download: {became.total()} rows: {said}. {to} is ready" + f"; --retry tries {passing} again" * bool(passing)
    )


def _begin(to: Path, source: str, retry: bool, rows: int) -> Path | None:
    """The folder to work in, of these lists; None where nothing is left to do."""
    work = to.with_name(f"{to.name}.partial")
    for folder in (to, work):
        if folder.exists() and (not (folder / _SOURCE).is_file() or read_text(folder / _SOURCE) != source):
            raise UserError(f"{folder} was not downloaded from these lists; delete it or name another folder")
    if to.exists():
        if not (retry and any(map(may_pass, outcomes(to, rows)))):
            return None
        to.rename(work)
    work.mkdir(parents=True, exist_ok=True)
    (work / _SOURCE).write_text(source)
    return work


def _remove_unfinished(work: Path) -> None:
    shutil.rmtree(work / "_tmp", ignore_errors=True)
    done = {record.stem for record in finished(work)}
    for pattern in ("*.tar", "[0-9]*.parquet"):
        for path in work.glob(pattern):
            if path.stem not in done:
                path.unlink()


def _pending(work: Path, table: pa.Table, *, again: bool) -> pa.Table:
    """Rows that no finished shard has; `again`: also those whose failure may have passed."""
    became = outcomes(work, len(table))
    wanted = [row for row, name in enumerate(became) if not name or (again and may_pass(name))]
    return table.take(pa.array(wanted, pa.int64()))


def _img2dataset(params: Download, work: Path, python: Path, rows: int, attempt: int) -> None:
    """Run img2dataset over the pending rows, in its own process group, which ends when this process does."""
    job = _job(params, work)
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ} | job["variables"]
    before = len(list(finished(work)))
    command = [str(python), "-I", str(_WORKER), json.dumps(job)]
    with (work / _LOG).open("ab") as log, tqdm(total=rows, unit="row", desc=_title(attempt)) as progress:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
        )
        try:
            while process.poll() is None:
                _advance(progress, list(finished(work))[before:])
                try:
                    process.wait(timeout=0.5)
                except subprocess.TimeoutExpired:
                    pass
            _advance(progress, list(finished(work))[before:])
        finally:
            assert process.stdin is not None
            process.stdin.close()  # the worker's sign to end, with every process of its group
            process.wait()
    if process.returncode:
        last = (work / _LOG).read_text(errors="replace").strip().splitlines() or [""]
        raise UserError(f"img2dataset ended with status {process.returncode}: {last[-1][:200]}; see {work / _LOG}")


def _title(attempt: int) -> str:
    return f"download, retry {attempt}" if attempt else "download"


def _advance(progress: Any, records: list[Path]) -> None:
    """Count the rows of the shards that are finished now."""
    progress.update(sum(pa.parquet.read_metadata(record).num_rows for record in records) - progress.n)


def _job(params: Download, work: Path) -> dict[str, Any]:
    """What the worker is told: its guard's limits, the variables of all that download, and img2dataset's arguments."""
    guard = {name: getattr(params, name) for name in ("allow_private_addresses", "max_bytes", "deadline_s")}
    arguments = {
        "url_list": str((work / _PENDING).resolve()),
        "input_format": "parquet",
        "caption_col": "caption",
        "save_additional_columns": ["row"],
        "output_folder": str(work.resolve()),
        "output_format": "webdataset",
        "incremental_mode": "extend",  # further shards with further keys; what is there stays
        "number_sample_per_shard": params.samples_per_shard,
        "distributor": params.distributor,
        "processes_count": params.processes,
        "thread_count": params.threads,
        "timeout": params.timeout_s,
        "retries": 0,  # its own come at once, and after a 404 too
        "image_size": params.short_side_px or 1,
        "resize_mode": "keep_ratio" if params.short_side_px else "no",
        "resize_only_if_bigger": True,
        "encode_quality": params.jpeg_quality,
        "skip_reencode": True,
        "extract_exif": False,
        "min_image_size": params.min_side_px,
        "max_aspect_ratio": params.max_aspect_ratio,
        "disallowed_header_directives": list(params.opt_out),
        "user_agent_token": params.user_agent,
    }
    variables = {
        "OPENCV_IO_MAX_IMAGE_PIXELS": str(int(params.max_megapixels * 1e6)),  # judged before anything is decoded
        "NO_ALBUMENTATIONS_UPDATE": "1",  # it asks its registry for a newer version otherwise
    }
    return {"guard": guard, "variables": variables, "cluster": params.cluster, "img2dataset": arguments}


def _report(to: Path, became: Counter[str], source: str, params: Download) -> None:
    content = {
        "rows": became.total(),
        "outcomes": dict(became.most_common()),
        "may_pass": sum(count for name, count in became.items() if may_pass(name)),
        "lists": parse_json(source, _SOURCE),
        "params": asdict(params),
    }
    to.with_name(f"{to.name}.report.json").write_text(json.dumps(content, indent=1) + "\n")
