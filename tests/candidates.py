"""Tuned encoders on disk, ready for promotion: a real open_clip model as tiny as it gets, its scores and report."""

import json

import open_clip
import torch
from safetensors.torch import save_file

from un2clip import tracking
from un2clip.evidence.gate import Rule
from un2clip.evidence.report import UNDECIDED
from un2clip.evidence.scores import Item, Scores
from un2clip.models.clip import encoder_sha256, load_clip, text_sha256
from un2clip.models.registry import FILES
from un2clip.stages.compare import Compare, compare
from un2clip.stages.promote import Promote, promote

RULES = (
    Rule(benchmark="mmvp_vlm", gain_above=0.0, data_sha256=""),
    Rule(benchmark="zeroshot", gain_above=-2.0, data_sha256=""),
)
MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
TUNED = "visual.class_embedding"  # the tensor in which candidates differ
HOW = {"compare": Compare(confidence=0.95, power=0.8, resamples=1000), "seed": 10}
MEAN = [0.5, 0.5, 0.5]


def new_weights():
    """Those of an untrained model, always the same."""
    torch.manual_seed(0)
    return {name: value.contiguous() for name, value in open_clip.CLIP(**MODEL).state_dict().items()}


class Candidate:
    """One tuned encoder on disk with its scores and report: `detail` of 400 pairs right, the reference has 100."""

    def __init__(self, folder, weights, name, *, detail, zeroshot=300, data="d", text=0.0):
        weights = weights | {"positional_embedding": weights["positional_embedding"] + text}
        self.encoder, self.scores, self.report = (folder / name / part for part in ("encoder", "scores", "report"))
        self.encoder.mkdir(parents=True)
        self.report.mkdir()
        self.weights = weights | {TUNED: weights[TUNED] + detail}
        save_file(self.weights, self.encoder / FILES[0])
        (self.encoder / FILES[1]).write_text(
            json.dumps({"model_cfg": MODEL, "preprocess_cfg": {"mean": MEAN, "std": MEAN}})
        )
        self.sha256 = encoder_sha256(self.encoder)
        self.lineage = {"method": "un2clip", "seed": 3, "params": {},
                        "parents": {"shards": "c" * 64, "clip": "a" * 64}, "encoder_sha256": self.sha256,
                        "text_sha256": text_sha256(load_clip(self.encoder).model),
                        "steps_done": 1, "corrupt": 0, "complete": True}  # fmt: skip
        (self.encoder / "lineage.json").write_text(json.dumps(self.lineage))
        made = {
            "encoder_sha256": self.sha256,
            "confidence": 0.95,
            "power": 0.8,
            "resamples": 1000,
            "seed": 10,
        }  # as HOW
        made |= {"method": "un2clip", "benchmarks": [], "lineage": self.lineage}
        (self.report / "report.json").write_text(json.dumps(made))
        (self.report / "index.html").write_text(UNDECIDED)
        self._save("reference", "mmvp_vlm", 100, data)
        self._save("tuned", "mmvp_vlm", detail, data)
        self._save("reference", "zeroshot", 300, data)
        self._save("tuned", "zeroshot", zeroshot, data)

    def _save(self, role, benchmark, right, data):
        items = tuple(Item(id=str(i), type="all", value=float(i < right)) for i in range(400))
        Scores(benchmark=benchmark, role=role, method=role, unit="%", protocol="", data_sha256=data * 64, items=items,
               encoder_sha256=self.sha256 if role == "tuned" else "a" * 64,
        ).save(self.scores / benchmark / f"{role}.json")  # fmt: skip

    def trained_on(self, shards):
        """Write the digest of training data into the lineage, and a report that follows from the scores."""
        self.lineage["parents"]["shards"] = shards
        (self.encoder / "lineage.json").write_text(json.dumps(self.lineage))
        nowhere = self.report.parent / "reconstructions"
        compare(HOW["compare"], seed=HOW["seed"], scores=[self.scores], encoder=self.encoder,
                reconstructions=nowhere, report=self.report)  # fmt: skip

    def change(self, **tensors):
        """Write other weights, and a lineage and a scores file that say they are the encoder's."""
        save_file(self.weights | tensors, self.encoder / FILES[0])
        old, self.sha256 = self.sha256, encoder_sha256(self.encoder)
        for path in (self.encoder / "lineage.json", self.report / "report.json", *self.scores.rglob("*.json")):
            path.write_text(path.read_text().replace(old, self.sha256))

    def promote(self, registry, *, champion="auto", rules=RULES):
        """Run the stage inside a tracked run and return decision.json."""
        params = Promote(registered_model=registry.name, champion=champion, rules=rules)
        names = {"scores": [self.scores], "encoder": self.encoder, "report": self.report,
                 "decision": self.report.parent / "decision"}  # fmt: skip
        with tracking.stage_run("promote", params={}, names=names):
            promote(params, **HOW, **names)
        return json.loads((names["decision"] / "decision.json").read_text())

    def done(self):
        """What registry.json says."""
        return json.loads((self.report.parent / "decision/registry.json").read_text())
