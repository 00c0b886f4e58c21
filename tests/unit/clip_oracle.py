"""The two benchmarks' protocols once more, naively: one image and one text at a time."""

import csv
import io
import tarfile

import torch
from PIL import Image
from torch.nn.functional import normalize


@torch.no_grad()
def image_features(clip, image):
    return normalize(clip.model.encode_image(clip.preprocess(image.convert("RGB"))[None]), dim=-1)[0]


@torch.no_grad()
def text_features(clip, text):
    return normalize(clip.model.encode_text(clip.tokenize([text])), dim=-1)[0]


def naive_mmvp(clip, folder):
    rows = list(csv.reader((folder / "Questions.csv").open()))[1:]
    outcome = {}
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        images = [
            Image.open(folder / "MLLM_VLM Images" / kind / f"{number}.jpg") for number, kind, _ in (first, second)
        ]
        features = torch.stack([image_features(clip, image) for image in images])
        right = []
        for truth, (_, _, statement) in enumerate((first, second)):
            logits = clip.model.logit_scale.exp() * features @ text_features(clip, "a photo of " + statement)
            picked = 0 if torch.softmax(logits, dim=0)[0] > 0.5 else 1
            right.append(picked == truth)
        outcome[f"{first[0]}-{second[0]}"] = float(all(right))
    return outcome


def naive_zeroshot(clip, folder):
    names = (folder / "classnames.txt").read_text().splitlines()
    templates = (folder / "zeroshot_classification_templates.txt").read_text().splitlines()
    classes = torch.stack(
        [
            normalize(
                torch.stack([text_features(clip, template.replace("{c}", name)) for template in templates]).mean(0),
                dim=0,
            )
            for name in names
        ]
    )
    outcome = {}
    with tarfile.open(folder / "test/0.tar") as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
    for name in members:
        if name.endswith(".png"):
            key = name.removesuffix(".png")
            picked = (classes @ image_features(clip, Image.open(io.BytesIO(members[name])))).argmax().item()
            outcome[key] = float(picked == int(members[f"{key}.cls"]))
    return outcome
