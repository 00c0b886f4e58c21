"""Sets and counts that may outgrow memory: tables of an SQLite file, of which a fixed number of pages is held."""

import hashlib
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from errno import ENOSPC
from pathlib import Path

CACHE_KIB = 16_384  # of a file's pages that stay in memory; about a quarter of a million keys
_DIGEST_BYTES = 16


class Tables:
    """One file of tables, which is thrown away at its end: nothing of it is written for another process."""

    def __init__(self, path: Path | None = None) -> None:
        """Make the file anew; None: a nameless one in the system's folder for such."""
        if path is not None:
            path.unlink(missing_ok=True)
        self._connection = sqlite3.connect(path or "", isolation_level=None)
        for line in (
            f"cache_size = -{CACHE_KIB}",
            "journal_mode = off",
            "synchronous = off",
            "locking_mode = exclusive",
        ):
            self._connection.execute(f"PRAGMA {line}")
        self._connection.execute("BEGIN")

    def close(self) -> None:
        self._connection.close()

    def execute(self, sql: str, values: tuple[object, ...] = ()) -> sqlite3.Cursor:
        """As sqlite3 has it, but a full disk is an OSError, as of any other file."""
        try:
            return self._connection.execute(sql, values)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                raise OSError(ENOSPC, "no space for the tables of keys") from error
            raise


@contextmanager
def opened(path: Path) -> Iterator[Tables]:
    """Tables in a file that is deleted at the end."""
    tables = Tables(path)
    try:
        yield tables
    finally:
        tables.close()
        path.unlink(missing_ok=True)


class StoredSet:
    """A set of texts, by 16 bytes of their hash each (BLAKE2b): two are taken for one with a chance of n^2 / 2^129."""

    def __init__(self, tables: Tables, name: str) -> None:
        self._tables, self._name, self._count = tables, name, 0
        tables.execute(f"CREATE TABLE {name} (digest BLOB PRIMARY KEY) WITHOUT ROWID")

    def __contains__(self, text: str) -> bool:
        sql = f"SELECT 1 FROM {self._name} WHERE digest = ?"
        return self._tables.execute(sql, (digest(text),)).fetchone() is not None

    def __len__(self) -> int:
        return self._count

    def add(self, text: str) -> None:
        self.add_digest(digest(text))

    def add_digest(self, of: bytes) -> None:
        """Add a text by its `digest`."""
        self._count += self._tables.execute(f"INSERT OR IGNORE INTO {self._name} VALUES (?)", (of,)).rowcount


class StoredCounts:
    """How often each text was counted."""

    def __init__(self, tables: Tables, name: str) -> None:
        self._tables, self._name = tables, name
        tables.execute(f"CREATE TABLE {name} (text TEXT PRIMARY KEY, n INTEGER) WITHOUT ROWID")

    def update(self, counts: Mapping[str, int]) -> None:
        """Add counts."""
        sql = f"INSERT INTO {self._name} VALUES (?, ?) ON CONFLICT (text) DO UPDATE SET n = n + excluded.n"
        for text, count in counts.items():
            self._tables.execute(sql, (text, count))

    def most_common(self, number: int) -> dict[str, int]:
        """The texts counted most often; of equal ones the first in order of their letters' numbers."""
        return dict(self._tables.execute(f"SELECT text, n FROM {self._name} ORDER BY n DESC, text LIMIT ?", (number,)))


def digest(text: str) -> bytes:
    """What a StoredSet knows a text by."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES).digest()
