"""Versions of the promoted encoder in the MLflow registry, and the way back out of it.

A version is an MLflow model (tracking/packing.py): the files that open_clip loads, and a short file of code that embeds
with them; nothing is pickled. The evidence it was judged by (lineage, scores with their items, report) lies in the
artifacts of the run that its tag EVIDENCE names.
"""

import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from un2clip.errors import UserError, nearest_folder
from un2clip.evidence.scores import Scores
from un2clip.models.clip import CONFIG, WEIGHTS, clip_files, encoder_sha256
from un2clip.models.exporting import Form, check_free, write_export
from un2clip.sources.hub import Source, check_local, obtain
from un2clip.tracking import store
from un2clip.tracking.packing import INSIDE, pack

FILES = (WEIGHTS, CONFIG)
#: Of the registered model, until a person writes another.
DESCRIPTION = """CLIP models whose image encoder was tuned, through a frozen unCLIP generator, to see more detail.
The text tower is that of the CLIP that each was made from.

The alias `champion` is the one to use; `challenger` is the newest.

```python
import mlflow

model = mlflow.pyfunc.load_model("models:/NAME@champion")  # images and texts in, embeddings out
```

`un2clip export --model NAME --alias champion --to FOLDER` writes the folder that open_clip loads.
"""
REGISTERED = re.compile(r"models:/(?P<name>[^/@]+)(/(?P<number>\d+)|@(?P<alias>[\w.-]+))")
EVIDENCE = "evidence_run"
ROLLED_BACK = "rolled_back"  # why a version is champion no more; then only a person makes it champion again
JUDGED_AGAINST = "judged_against"  # number of the version that a version had to beat; empty for the reference
LOOK = "look"  # how many encoders had been judged against that one on these data, this one among them


def check_name(name: str) -> str:
    """Return a registered model's name; UserError where it would not do in a registry's address."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise UserError(f"registered_model must be letters, digits, '_', '.' and '-', got {name!r}")
    return name


def obtain_model(source: Source, *, files: Iterable[str] = (), name: str) -> Path:
    """Get a model onto this machine, verified: as `hub.obtain`, and `models:/name/3` or `models:/name@alias` besides.

    Raises:
        UserError: as `hub.obtain`; or there is no such version, or it is not what was registered.
    """
    if not source.location.startswith("models:"):
        return obtain(source, files=files, name=name)
    if not (match := REGISTERED.fullmatch(source.location)):
        raise UserError(f"{name}: {source.location!r} must be models:/name/3 or models:/name@alias")
    registry = Registry(match["name"])
    with store.as_user_error():
        version = registry.version(match["number"] or registry.resolve_alias(match["alias"]))
    folder = Path(constants.HF_HOME) / "un2clip" / f"{registry.name}-{version.number}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return check_local(registry.fetch(version, folder), source, files=files, name=name)


@dataclass(frozen=True, kw_only=True)
class Version:
    """One version.

    Attributes:
        number: as MLflow counts them.
        tags: its own, and those of the logged model behind it, which keeps the hashes.
        model_id: of MLflow's logged model behind it; "" for one that was registered by hand without.
    """

    number: str
    tags: Mapping[str, str]
    model_id: str = ""


class Registry:
    """The registered model called `name`; it is made when its first version is registered.

    Raises:
        UserError: MLflow cannot be reached.
    """

    def __init__(self, name: str) -> None:
        self.name = check_name(name)
        self.client = store.connect()

    def aliases(self) -> dict[str, str]:
        """Alias -> number of its version."""
        models = self.client.search_registered_models(f"name = '{self.name}'")
        return {str(alias): str(number) for alias, number in models[0].aliases.items()} if models else {}

    def version(self, number: str) -> Version:
        """The version of a number; MLflow's own error where there is none."""
        found = self.client.get_model_version(self.name, number)
        model_id = _model_id(found)
        kept = store.model_tags(self.client, model_id)
        tags = {str(key): str(value) for key, value in (found.tags | kept).items()}
        return Version(number=number, tags=tags, model_id=model_id)

    def exists(self, number: str) -> bool:
        """Whether there is such a version; a person may have deleted it."""
        versions = self.client.search_model_versions(f"name = '{self.name}'")
        return number in [str(version.version) for version in versions]

    def find(self, encoder_sha256: str) -> Version | None:
        """The oldest version that holds this very encoder."""
        wanted = f"tags.encoder_sha256 = '{encoder_sha256}'"
        models = self.client.search_logged_models([store.experiment(self.client)], wanted)
        held = {each.model_id for each in models}
        versions = self.client.search_model_versions(f"name = '{self.name}'")
        found = [int(each.version) for each in versions if _model_id(each) in held]
        return self.version(str(min(found))) if found else None

    def judged(self) -> list[dict[str, str]]:
        """Tags of every encoder that was ever registered under this name, those of deleted versions too."""
        found = store.logged_models(self.client, self.name)
        return [dict(each.tags) for each in found if "encoder_sha256" in each.tags]

    def register(self, encoder: Path, shown: Mapping[str, str], kept: Mapping[str, str], run_id: str) -> Version:
        """Upload a CLIP folder as a new version that a run made; what else lies in the folder stays there.

        Of two processes that register one encoder at the same time the lower number wins, and the other is deleted.

        Args:
            encoder: the folder.
            shown: tags of the version, which its page lists: few, and for people.
            kept: tags of the logged model behind it, of which encoder_sha256 is one.
            run_id: of the run that made it.
        """
        self._create()
        tags = {**shown, **kept}
        model_id = self.client.create_logged_model(store.experiment(self.client), self.name, run_id, tags=tags).model_id
        try:
            with tempfile.TemporaryDirectory() as folder:
                files = {name: encoder / name for name in clip_files(encoder)}
                pack(files, Path(folder, "model"), model_id=model_id, run_id=run_id)
                self.client.log_model_artifacts(model_id, str(Path(folder, "model")))
        except BaseException:
            self.client.finalize_logged_model(model_id, "FAILED")
            raise
        self.client.finalize_logged_model(model_id, "READY")
        version = self.client.create_model_version(
            self.name, f"models:/{model_id}", run_id=run_id, tags=dict(shown), model_id=model_id
        )
        first = self.find(kept["encoder_sha256"])
        if first and first.model_id != model_id:  # it was there when this one was made, so its process sees no older
            self.client.delete_model_version(self.name, str(version.version))
            self.client.delete_logged_model(model_id)
            self.tag(first, shown, kept)
            return first
        return self.version(str(version.version))

    def _create(self) -> None:
        """Make the registered model, unless it is there, or another process is quicker; a description stays."""
        wanted, described = f"name = '{self.name}'", DESCRIPTION.replace("NAME", self.name)
        if found := self.client.search_registered_models(wanted):
            if not found[0].description:
                self.client.update_registered_model(self.name, described)
            return
        try:
            self.client.create_registered_model(self.name, description=described)
        except Exception:
            if not self.client.search_registered_models(wanted):
                raise

    def tag(self, version: Version, shown: Mapping[str, str], kept: Mapping[str, str]) -> None:
        """Set tags of a version, and with them more of the logged model behind it."""
        for key, value in shown.items():
            self.client.set_model_version_tag(self.name, version.number, key, value)
        self.client.set_logged_model_tags(version.model_id, {**shown, **kept})

    def log_scores(self, version: Version, scores: Iterable[Scores], run_id: str) -> None:
        """Put scores on the page of the model behind a version, each with its data set."""
        store.log_model_scores(self.client, version.model_id, scores, run_id)

    def describe(self, number: str, text: str) -> None:
        """Set a version's description: what a person reads first on its page."""
        self.client.update_model_version(self.name, number, text)

    def set_alias(self, alias: str, number: str) -> None:
        """Move an alias to a version."""
        self.client.set_registered_model_alias(self.name, alias, number)

    def log_artifacts(self, run_id: str, folder: Path) -> None:
        """Put a folder's files into the artifacts of a run."""
        self.client.log_artifacts(run_id, str(folder), "evidence")

    def fetch_scores(self, version: Version, to: Path) -> Path | None:
        """Download the scores that a version was judged by; None when nothing is left of them."""
        run_id = version.tags.get(EVIDENCE)
        if not run_id or not store.has_artifacts(self.client, run_id, "evidence/scores"):
            return None
        return store.download(self.client, f"runs:/{run_id}/evidence/scores", to)

    def fetch_evidence(self, version: Version, to: Path) -> Path:
        """Download all that a version was judged by; a UserError where nothing is left of it."""
        run_id = version.tags.get(EVIDENCE)
        if not run_id or not store.has_artifacts(self.client, run_id, "evidence"):
            raise UserError(f"nothing is left of the evidence for version {version.number} of {self.name}")
        return store.download(self.client, f"runs:/{run_id}/evidence", to)

    def resolve_alias(self, alias: str) -> str:
        """Number of the version behind an alias; a UserError lists those there are."""
        aliases = self.aliases()
        if alias not in aliases:
            known = ", ".join(f"{name} (version {number})" for name, number in sorted(aliases.items())) or "none yet"
            raise UserError(f"{self.name} has no alias {alias!r}; it has: {known}")
        return aliases[alias]

    def fetch(self, version: Version, to: Path) -> Path:
        """Download a version into an empty folder, and return the CLIP folder in it.

        Its weights must be those that were registered. Before a version was an MLflow model, it was the CLIP folder.
        """
        with store.as_user_error():
            fetched = store.download(self.client, f"models:/{self.name}/{version.number}", to)
        if (fetched / INSIDE).is_dir():
            fetched = fetched / INSIDE
        if missing := [name for name in FILES if not (fetched / name).is_file()]:
            raise UserError(f"version {version.number} of {self.name} has no {' and no '.join(missing)}")
        wanted, found = version.tags.get("encoder_sha256"), encoder_sha256(fetched)
        if found != wanted:
            raise UserError(
                f"version {version.number} of {self.name} is not what was registered: its weights hash to "
                f"{found[:12]}, its tag encoder_sha256 says {str(wanted)[:12]}; nothing was written"
            )
        return fetched


def export(alias: str, to: Path, registered_model: str, form: Form = "open_clip") -> Version:
    """Get the encoder behind an alias back, in one of the forms of models.exporting.

    Args:
        alias: champion, challenger, or one that was set by hand.
        to: a folder that is empty or does not exist.
        registered_model: name in the registry.

    Raises:
        UserError: there is no such alias, the folder is in use, or the weights are not those that were registered.
    """
    check_free(to)
    registry = Registry(registered_model)
    version = registry.version(registry.resolve_alias(alias))
    # beside it, so that the download has the room that its copy will have
    with tempfile.TemporaryDirectory(dir=nearest_folder(to.resolve().parent)) as folder:
        how = write_export(registry.fetch(version, Path(folder)), to, form)
    print(f"{registered_model} version {version.number} ({alias}) is in {to}: {how}")
    return version


def _model_id(version: Any) -> str:
    """Of MLflow's own object, which a server of one's own leaves without; its source names the model all the same."""
    model_id = str(version.source).partition("models:/")[2]
    return model_id if model_id.startswith("m-") else ""
