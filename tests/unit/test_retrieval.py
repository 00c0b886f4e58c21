"""Retrieval: ranks by hand, and clip-benchmark's own recall on the same model and data."""

import io
import json
import math
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from un2clip.config import build
from un2clip.errors import UserError
from un2clip.evaluation.benchmarks import retrieval
from un2clip.evaluation.benchmarks.retrieval import ranks
from un2clip.evaluation.measuring import Evaluate
from un2clip.evidence.scores import collect_scores, mismatch
from un2clip.models.clip import load_clip
from un2clip.stages.evaluate import evaluate

REAL = Path(__file__).parents[3] / "shared/realdata"


def write_tar(path, samples):
    """Samples of key, bytes of the image, captions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, image, captions in samples:
            for name, content in ((f"{key}.jpg", image), (f"{key}.txt", "\n".join(captions).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


@pytest.fixture(scope="module")
def captioned(tiny, tmp_path_factory):
    """24 scenes with five captions each, two tars in clip-benchmark's retrieval layout."""
    folder = tmp_path_factory.mktemp("data") / "retrieval-scenes"
    samples = []
    with tarfile.open(next(tiny.images.rglob("*.tar"))) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
    for name in [name for name in members if name.endswith(".png")][:24]:
        buffer = io.BytesIO()
        Image.open(io.BytesIO(members[name])).save(buffer, "jpeg")
        facts = json.loads(members[name.replace(".png", ".json")])
        words = [f"{key} {value}" for key, value in facts.items()]
        samples.append((name[:-4], buffer.getvalue(), [f"{name[:-4][-2:]} {word}" for word in words[:5]]))
    write_tar(folder / "test/0.tar", samples[:10])
    write_tar(folder / "test/1.tar", samples[10:])
    (folder / "test/nshards.txt").write_text("2\n")
    (folder / "dataset_type.txt").write_text("retrieval\n")
    return folder


def run(tiny, folder, batch_size=7):
    return retrieval.run(load_clip(tiny.backbones / "clip"), folder, batch_size=batch_size).items


def recall(items, name):
    values = [item.value for item in items if item.type == name]
    return sum(values) / len(values)


def test_ranks_by_hand():
    """Three images with five captions each: rank of the best positive; ties and NaN count against the query."""
    owner = torch.arange(3).repeat_interleave(5)
    similarity = torch.tensor(
        [
            [0.9, 0, 0, 0, 0] + [0.8] * 5 + [0.1] * 5,  # its first caption leads: rank 1
            [0.5] * 5 + [0.1, 0.1, 0.4, 0.1, 0.1] + [0.6] * 5,  # ten others lead: rank 11
            [0.7, 0.2, 0.2, 0.2, 0.2] + [0.7, 0.2, 0.2, 0.2, 0.2] + [0.7, 0.7, 0.2, 0.2, 0.2],  # ties two others: 3
        ]
    )
    images, identity = torch.arange(3), torch.eye(15)
    for batch_size in (1, 2, 100):
        assert ranks(similarity, identity, images, owner, batch_size) == [1, 11, 3]
        assert ranks(identity, similarity, owner, images, batch_size)[:6] == [1, 3, 3, 3, 3, 3]
    similarity[0, 0] = math.nan
    assert ranks(similarity, identity, images, owner, 2) == [11, 11, 3]


def test_equals_clip_benchmarks_own_recall(tiny, captioned, clip_benchmark):
    """Both directions at 1, 5 and 10, by clip-benchmark's reader and its evaluate."""
    builder, metric = clip_benchmark("datasets.builder"), clip_benchmark("metrics.zeroshot_retrieval")
    clip = load_clip(tiny.backbones / "clip")
    data = builder.build_dataset("wds/x", root=str(captioned), transform=clip.preprocess, task="zeroshot_retrieval")
    loader = DataLoader(list(data), batch_size=5, collate_fn=builder.image_captions_collate_fn)
    theirs = metric.evaluate(clip.model, loader, clip.tokenize, "cpu", amp=False, recall_k_list=[1, 5, 10])
    items = run(tiny, captioned)
    assert len(theirs) == 6 and len({item.type for item in items}) == 6
    for k in (1, 5, 10):
        assert recall(items, f"image to text R@{k}") == pytest.approx(theirs[f"text_retrieval_recall@{k}"], abs=1e-6)
        assert recall(items, f"text to image R@{k}") == pytest.approx(theirs[f"image_retrieval_recall@{k}"], abs=1e-6)
    assert 0 < recall(items, "text to image R@10") < 1


def test_items_of_an_image_are_parts_of_one_sample(tiny, captioned):
    """6 queries times 3 for each of 24 images, distinct ids, and 24 samples to draw."""
    items = run(tiny, captioned)
    assert len({item.id for item in items}) == len(items) == 24 * 6 * 3
    assert len({item.sample for item in items}) == 24


def test_batch_size_does_not_change_an_outcome(tiny, captioned):
    """Blocks of one, and one block for all."""
    assert run(tiny, captioned, 1) == run(tiny, captioned, 1000)


def test_a_k_that_cannot_be_missed_is_left_out(tiny, captioned, tmp_path):
    """Among 4 images R@5 and R@10 would be 100 % for any encoder; among their 20 captions they are not."""
    with tarfile.open(captioned / "test/0.tar") as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar][:8]
    pairs = zip(members[::2], members[1::2], strict=True)
    samples = [(image[0][:-4], image[1], text[1].decode().splitlines()) for image, text in pairs]
    write_tar(tmp_path / "few/0.tar", samples)
    types = {item.type for item in run(tiny, tmp_path / "few")}
    assert types == {*(f"image to text R@{k}" for k in (1, 5, 10)), "text to image R@1"}
    write_tar(tmp_path / "one/0.tar", samples[:1])
    with pytest.raises(UserError, match="holds 1 images; retrieval needs at least 2"):
        run(tiny, tmp_path / "one")


def index_of(clip, reference, folder):
    return retrieval.run(clip, folder, batch_size=7, reference=reference).also["index"].items


def test_an_index_of_the_reference(tiny, captioned):
    """By a formula of its own: new queries among old images. Texts lose nothing, since their tower is the same."""
    reference, tuned = load_clip(tiny.backbones / "clip"), load_clip(tiny.backbones / "clip")
    with torch.no_grad():
        for value in tuned.model.visual.parameters():
            value.add_(0.05 * torch.randn(value.shape, generator=torch.Generator().manual_seed(0)))
    samples = list(retrieval._samples(captioned))
    pixel_values = torch.stack([reference.preprocess(picture.read()) for _, picture, _ in samples])
    old, new = (torch.nn.functional.normalize(clip.embed(pixel_values), dim=-1) for clip in (reference, tuned))
    own = (new @ old.T).diag()
    rank = (new @ old.T >= own[:, None]).sum(dim=1)
    items = index_of(tuned, reference, captioned)
    assert 0 < recall(items, "image to old image R@10") < 1, "an index that loses some"
    for k in (1, 5, 10):
        assert recall(items, f"image to old image R@{k}") == pytest.approx(float((rank <= k).float().mean()))
        assert recall(items, f"text to old image R@{k}") == recall(run(tiny, captioned), f"text to image R@{k}")
    assert recall(index_of(reference, reference, captioned), "image to old image R@1") == 1.0
    assert retrieval.run(tuned, captioned, batch_size=7).also == {}


def test_the_index_is_a_score_like_any_other(tiny, captioned, tmp_path):
    """`evaluate` writes it for both encoders, and they can be compared; another width is a sentence."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/retrieval-scenes").symlink_to(captioned)
    section = build(Evaluate, tiny.params["evaluate"], "evaluate")
    encoder = tiny.backbones / "clip"
    evaluate(section, benchmark="retrieval-scenes", device="cpu", checkpoints="", benchmarks=tmp_path / "data",
             backbones=tiny.backbones, encoder=encoder, scores=tmp_path / "scores")  # fmt: skip
    found = collect_scores([tmp_path / "scores"])
    assert found.keys() == {"retrieval-scenes", "retrieval-scenes-index"}
    assert mismatch(found["retrieval-scenes-index"]["reference"], found["retrieval-scenes-index"]["tuned"]) is None
    narrow = load_clip(encoder)
    narrow.model.visual.proj = torch.nn.Parameter(narrow.model.visual.proj[:, :-1])
    with pytest.raises(UserError, match="fit no index of"):
        index_of(load_clip(encoder), narrow, captioned)


@pytest.mark.parametrize(
    ("captions", "kind", "message"),
    [
        (["", " "], "retrieval", "sample a has no caption"),
        (["a"], "multilabel", "dataset_type.txt, if any, say retrieval"),
    ],
)
def test_what_is_no_retrieval_set_is_named(tiny, tmp_path, captions, kind, message):
    """No captions, another kind of set, no tars."""
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, "jpeg")
    with pytest.raises(UserError, match=r"must hold test/\*.tar or \*.tar"):
        run(tiny, tmp_path)
    write_tar(tmp_path / "0.tar", [("a", buffer.getvalue(), captions)])
    (tmp_path / "dataset_type.txt").write_text(kind)
    with pytest.raises(UserError, match=message):
        run(tiny, tmp_path)


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/realdata (111 COCO photographs in tars)")
def test_coco_photographs(tiny, tmp_path):
    """111 photographs of many sizes with five captions each: 111 and 555 queries."""
    samples = []
    for path in sorted(REAL.glob("coco-open-*.tar")):
        with tarfile.open(path) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
        for name in members:
            if name.endswith(".jpg"):  # one of COCO's captions has a line break within
                captions = json.loads(members[f"{name[:-4]}.json"])["captions"]
                samples.append((name[:-4], members[name], [" ".join(caption.split()) for caption in captions]))
    write_tar(tmp_path / "0.tar", samples)
    items = run(tiny, tmp_path, 32)
    queries = [sum(item.type == name for item in items) for name in ("image to text R@1", "text to image R@10")]
    assert queries == [111, 555]
