"""Real photographs through the whole pipeline: ingestion, un2clip with toy backbones, evaluation, report, gate."""

import json
from pathlib import Path

import pytest

from un2clip.config import merge, read_yaml
from un2clip.stages import run_stage

ROOT = Path(__file__).parents[2]
PHOTOS = ROOT.parent / "shared" / "realdata"


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="needs ../shared/realdata (111 COCO photographs in tars)")
def test_photographs_to_a_report(tiny, tmp_path: Path) -> None:
    """All 111 photographs are kept, the encoder trains on them, and the report and the decision are about them."""
    params = merge(tiny.params, read_yaml(ROOT / "configs/photos.yaml"))
    params = merge(params, {"finetune": {"phases": {"tune": {"steps": 3}}}})
    shards, encoder, scores = tmp_path / "shards", tmp_path / "encoder", tmp_path / "scores"
    run_stage("ingest", params["ingest"], images=PHOTOS, shards=shards)
    index = json.loads((shards / "index.json").read_text())
    assert (index["read"], index["kept"], index["rejected"]) == (111, 111, {})
    given = {"device": "cpu", "shards": shards, "backbones": tiny.backbones}
    run_stage("latents", params["latents"], **given, latents=tmp_path / "latents")
    given |= {"seed": 0, "latents": tmp_path / "latents"}
    words = {"method": "un2clip-anchored", "checkpoints": ""}
    run_stage("finetune", params["finetune"], **words, **given, encoder=encoder)
    given |= {"encoder": encoder}
    run_stage("diffusion_loss", params["diffusion_loss"], **given, scores=scores / "diffusion_loss")
    del given["latents"]
    run_stage("reconstruct", params["reconstruct"], **given, reconstructions=tmp_path / "pictures")
    for name in params["benchmarks"]:
        given = {"device": "cpu", "benchmarks": tiny.benchmarks, "backbones": tiny.backbones, "encoder": encoder}
        given["checkpoints"] = ""
        run_stage("evaluate", params["evaluate"], benchmark=name, **given, scores=scores / name)
    report = {"scores": [scores], "encoder": encoder, "report": tmp_path / "report"}
    run_stage("compare", params["compare"], seed=0, reconstructions=tmp_path / "pictures", **report)
    run_stage("promote", params["promote"], compare=params["compare"], seed=0, **report, decision=tmp_path / "decision")
    assert "data:image/png" in (tmp_path / "report/index.html").read_text()
    lineage = json.loads((encoder / "lineage.json").read_text())
    assert lineage["parents"]["shards"] == json.loads((scores / "diffusion_loss/tuned.json").read_text())["data_sha256"]
    assert "passed" in json.loads((tmp_path / "decision/decision.json").read_text())
