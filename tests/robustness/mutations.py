"""Damage files at random, read each with the program's own reader, and count what happened.

    python -m tests.robustness.mutations --n 4000 --seed 0 --to docs/robustness.md

Every reading is a process of its own, with a limit on its time and on its memory. What it does is one of OUTCOMES.
"""

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("UN2CLIP_TRACKING", "off")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

from tests.robustness.cases import CASES, Case, make_world
from tests.robustness.mutating import is_legal, mutate
from un2clip.errors import UserError

SECONDS, GIGABYTE = 20, 1 << 30  # of processor time, and of memory beyond what the process has at its start
PATIENCE = 15  # times as long by the clock, for a reading that waits for something or for a busy machine
LONGEST = 1500  # letters of a sentence
SAID, SAME, OTHER = "one line", "same result", "what the file now says"
TRACEBACK, LARGE, SILENT = "traceback", "too slow or too large", "silently another result"
OUTCOMES = (SAID, SAME, OTHER, TRACEBACK, LARGE, SILENT)
WRONG = (TRACEBACK, LARGE, SILENT)
HEADING = "## Mutated files"


@dataclass(frozen=True)
class Found:
    """What one mutation did."""

    case: str
    file: str
    mutation: str
    outcome: str
    said: str


def run(world: Path, n: int, seed: int, cases: tuple[Case, ...] = CASES) -> Iterator[Found]:
    """Mutate n times; the world is as before afterwards."""
    torch.set_num_threads(1)
    rng = random.Random(seed)
    with contextlib.redirect_stdout(None):
        for case in cases:
            case.read(world)  # here, so that each child need not import the libraries anew
            shutil.rmtree(world / "fresh", ignore_errors=True)
    clean = {case.name: _read(case, world) for case in cases}
    for name, (kind, text) in clean.items():
        assert kind == "value", f"{name} cannot be read as it is: {text}"
    for number in range(n):
        weights = [case.share for case in cases]
        case = cases[number] if number < len(cases) else rng.choices(cases, weights)[0]
        file = rng.choice([path for pattern in case.files for path in sorted(world.glob(pattern))])
        before = file.read_bytes()
        done, after = mutate(rng, file)
        file.write_bytes(after)
        try:
            kind, said = _read(case, world)
            if kind == "value":
                legal = is_legal(file, before, own=case.own)
                kind = SAME if said == clean[case.name][1] else OTHER if legal else SILENT
        finally:
            file.write_bytes(before)
        yield Found(case.name, str(file.relative_to(world)), done, kind, said)


def _read(case: Case, world: Path) -> tuple[str, str]:
    """What a reading in a process of its own gives: (SAID | TRACEBACK | LARGE | "value", text)."""
    with tempfile.TemporaryFile() as answer:
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            _answer(case, world, answer.fileno())
        _, status, usage = os.wait4(child, 0)
        shutil.rmtree(world / "fresh", ignore_errors=True)
        answer.seek(0)
        text = answer.read().decode()
    if os.WIFSIGNALED(status):
        return LARGE, f"ended by signal {os.WTERMSIG(status)}"
    kind, said, grown = json.loads(text)
    if grown > GIGABYTE:
        return LARGE, f"{grown / GIGABYTE:.1f} GiB"
    return kind, said


def _answer(case: Case, world: Path, to: int) -> None:
    """In the child: read, write what came of it, and end without any clean-up of the parent's."""
    try:
        begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + 3 * GIGABYTE,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.setitimer(signal.ITIMER_REAL, PATIENCE * SECONDS)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        try:
            kind, said = "value", repr(case.read(world))
        except UserError as error:
            said = str(error)
            kind = SAID if said.isprintable() and len(said) <= LONGEST else TRACEBACK
        except BaseException:
            kind, said = TRACEBACK, traceback.format_exc()
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begun) * 1024
        os.write(to, json.dumps([kind, said if kind != "value" else _digest(said), grown]).encode())
    finally:
        os._exit(0)


def _digest(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def table(found: list[Found]) -> str:
    """A row a kind of file, a column an outcome, in Markdown."""
    counts = {case.name: Counter(each.outcome for each in found if each.case == case.name) for case in CASES}
    counts["all"] = Counter(each.outcome for each in found)
    lines = [f"| file | mutations | {' | '.join(OUTCOMES)} |", "|---" * (2 + len(OUTCOMES)) + "|"]
    for name, of_case in counts.items():
        lines.append(f"| {name} | {of_case.total()} | {' | '.join(str(of_case[each]) for each in OUTCOMES)} |")
    return "\n".join(lines)


def section(found: list[Found], seed: int) -> str:
    """The section of the page."""
    return f"""{HEADING}

    python -m tests.robustness.mutations --n {len(found)} --seed {seed} --to docs/robustness.md

damages a file of each kind that is read, and reads it with the program's own reader, in a process of its own, which may
take {SECONDS} s of processor time and 1 GiB more than at its start. A bit is flipped, the end is lost, bytes are put in
(FF FE, NUL, E9, an escape) or cut out, a node of JSON or YAML gets another type, a key is left out, renamed or doubled,
brackets nest 200 deep, aliases multiply to 10⁹; of weights the header says other names, types, shapes and places, or a
value is not finite.

- *one line*: a sentence for the user, printable, that ends the command with status 2.
- *what the file now says*: it is still a legal file of its kind, by another parser, and says something else: another
  name, another number. Of what a stage wrote, that holds only where every key and type is as before. A hash tells such
  a file from the old one where there is one (shards, latents, encoders, pinned and locked files); a person's own file
  has none. Of tars, `ingest` lists what it rejects.
- *silently another result*: it is no legal file of its kind, and a result other than the old one came of it.

{table(found)}
"""


def main() -> None:
    """Make the world, damage it n times, print the table and everything that is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--n", type=int, default=len(CASES), help="mutations (default: one of each kind of file)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="kinds of files whose name has this in it")
    parser.add_argument("--world", type=Path, help="keep the files that are mutated here, and take them from here")
    parser.add_argument("--to", type=Path, help="page whose section is written anew")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = args.world or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not (folder / "world").exists():
            from tests.conftest import make_tiny

            make_world(make_tiny(folder / "tiny"), folder / "world")
        cases = tuple(case for case in CASES if args.only is None or args.only in case.name)
        found = []
        for each in run(folder / "world", args.n, args.seed, cases):
            found.append(each)
            if each.outcome in WRONG:
                print(
                    f"\n{len(found)}. {each.case}, {each.file}, {each.mutation}: {each.outcome}\n{each.said[-900:]}",
                    flush=True,
                )
    print(table(found))
    if args.to:
        write_section(args.to, section(found, args.seed))


def write_section(page: Path, text: str) -> None:
    """Put a section into a page, in the place of the one of its heading."""
    old = page.read_text() if page.is_file() else "# Robustness\n\n"
    before, found, rest = old.partition(HEADING)
    after = rest[rest.index("\n## ") + 1 :] if found and "\n## " in rest else ""
    page.write_text(before + text + (f"\n{after}" if after else ""))


if __name__ == "__main__":
    main()
