"""Reading encoders as they were published; every oracle is the model whose weights were written."""

import hashlib
import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.transforms import functional as F

from tests.hub import COMMIT, Hub, served
from tests.toy_clips import FAMILIES, MODEL_CFG, PREPROCESS_CFG, TEXTS, WORDS, model_of, write_folder
from un2clip.__main__ import main
from un2clip.errors import UserError
from un2clip.models.clip import load_clip, save_clip, text_sha256
from un2clip.models.converting import Encoder, architecture_config, convert_checkpoint

PIXELS = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def encoder(weights, **changes) -> Encoder:
    given = {"architecture": "", "revision": "", "sha256": {}, "visual": ""} | changes
    return Encoder(weights=str(weights), **given)


def same(clip, model) -> bool:
    """Whether a CLIP gives a model's own embeddings, both towers, to the last bit."""
    with torch.no_grad():
        images, texts = model.encode_image(PIXELS), model.encode_text(clip.tokenize(TEXTS))
    return torch.equal(clip.embed(PIXELS), images) and torch.equal(clip.embed_texts(TEXTS), texts)


@pytest.fixture
def published(monkeypatch):
    """The toy families in open_clip's list, with a tag `web`, and `quickgelu`'s weights offered for `gelu` too."""
    for family in FAMILIES:
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, family, MODEL_CFG[family])
        tag = PREPROCESS_CFG[family] | {"hf_hub": f"org/{family}/", "quick_gelu": family == "quickgelu"}
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, family, {"web": tag})
    return open_clip


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_is_read_and_written_as_open_clip_would(tmp_path, family) -> None:
    """Both towers to the bit; open_clip loads what was written; saved again, the same bytes."""
    model = write_folder(tmp_path / "in", family)
    clip = convert_checkpoint(encoder(tmp_path / "in"), tmp_path / "out")
    assert same(clip, model) and clip.embed_dim == 32 and text_sha256(clip.model) == text_sha256(model)
    theirs = open_clip.create_model(f"local-dir:{tmp_path / 'out'}").eval()
    assert same(clip, theirs)
    save_clip(load_clip(tmp_path / "out"), tmp_path / "again")
    save_clip(load_clip(tmp_path / "again"), tmp_path / "third")
    for path in (tmp_path / "again").iterdir():
        assert (tmp_path / "third" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize(
    ("family", "kind"), [("gelu", "half"), ("quickgelu", "prefixed"), ("siglip", "torch"), ("siglip", "half")]
)
def test_an_architecture_and_a_state_dict(tmp_path, published, family, kind) -> None:
    """In half precision, saved by a parallel wrapper, or as a torch file: the same CLIP."""
    model = model_of(family)
    state = model.state_dict()
    if kind == "half":
        state = {key: value.half() for key, value in state.items()}
        model.load_state_dict(state)
    if kind == "prefixed":
        state = {"state_dict": {f"module.{key}": value for key, value in state.items()}}
    file = tmp_path / "in" / ("weights.safetensors" if kind == "half" else "weights.ckpt")
    file.parent.mkdir()
    (save_file if kind == "half" else torch.save)(state, file)
    if family == "siglip":
        with pytest.raises(UserError, match="needs its tokenizer's files beside the weights"):
            convert_checkpoint(encoder(file, architecture="siglip:web"), tmp_path / "out")
        write_folder(tmp_path / "tokenizer", family)
        for each in (tmp_path / "tokenizer").glob("token*"):
            each.rename(file.parent / each.name)
        file = file.parent
    clip = convert_checkpoint(encoder(file, architecture=f"{family}:web"), tmp_path / "out")
    assert same(clip, model)
    assert clip.config == {"model_cfg": MODEL_CFG[family], "preprocess_cfg": PREPROCESS_CFG[family]}


def test_openais_own_state_dict(tmp_path, published) -> None:
    """Its three numbers are no weights; open_clip's own loader of such files agrees; GELU is refused."""
    model = model_of("quickgelu")
    state = {key: value.half().float() for key, value in model.state_dict().items()}  # that loader halves them
    model.load_state_dict(state)
    sizes = {
        "input_resolution": torch.tensor(32),
        "context_length": torch.tensor(16),
        "vocab_size": torch.tensor(49408),
    }
    torch.save(state | sizes, tmp_path / "openai.pt")
    clip = convert_checkpoint(encoder(tmp_path / "openai.pt", architecture="quickgelu:web"), tmp_path / "out")
    assert same(clip, model)
    assert same(clip, open_clip.load_openai_model(str(tmp_path / "openai.pt"), device="cpu"))
    with pytest.raises(UserError, match="trained with QuickGELU; take the -quickgelu architecture"):
        convert_checkpoint(encoder(tmp_path / "openai.pt", architecture="gelu:web"), tmp_path / "no")


def test_the_activation_trap() -> None:
    """Weights trained with QuickGELU are refused with a configuration of the same shape that lacks it."""
    with pytest.raises(UserError, match=r"take ViT-L-14-quickgelu:openai"):
        architecture_config("ViT-L-14:openai")
    assert architecture_config("ViT-L-14-quickgelu:openai")["model_cfg"]["quick_gelu"] is True
    assert architecture_config("ViT-SO400M-14-SigLIP-384:webli")["preprocess_cfg"]["resize_mode"] == "squash"
    with pytest.raises(UserError, match=r"known: ViT-H-14:laion2b_s32b_b79k"):
        architecture_config("ViT-H-14")


def test_a_published_folder_that_forgot_quick_gelu(tmp_path, published, monkeypatch) -> None:
    """A hub id of open_clip's list tells what its own configuration may not; an architecture mends it."""
    write_folder(tmp_path / "in", "gelu")
    files = {f"org/quickgelu/{path.name}": path.read_bytes() for path in (tmp_path / "in").iterdir()}
    sha256 = {name.rpartition("/")[2]: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    with served(Hub(files), monkeypatch, str(tmp_path / "home")):
        given = {"revision": COMMIT, "sha256": sha256}
        with pytest.raises(UserError, match="set architecture to quickgelu-quickgelu:web"):
            convert_checkpoint(encoder("org/quickgelu", **given), tmp_path / "out")
        clip = convert_checkpoint(encoder("org/quickgelu", architecture="quickgelu:web", **given), tmp_path / "out")
    assert clip.config["model_cfg"]["quick_gelu"] is True


@pytest.mark.parametrize(
    ("family", "prefix"), [("gelu", ""), ("quickgelu", "visual."), ("siglip", "module.visual."), ("siglip", "")]
)
def test_a_visual_tower_alone_changes_the_images_only(tmp_path, family, prefix) -> None:
    """As un2CLIP's files are: the donor's image embeddings, the base's text embeddings and text bytes."""
    base, donor = write_folder(tmp_path / "in", family), model_of(family, seed=1)
    tower = {f"{prefix}{key}": value for key, value in donor.visual.state_dict().items()}
    torch.save(tower, tmp_path / "tower.ckpt")
    sha256 = {"tower.ckpt": hashlib.sha256((tmp_path / "tower.ckpt").read_bytes()).hexdigest()}
    clip = convert_checkpoint(
        encoder(tmp_path / "in", visual=str(tmp_path / "tower.ckpt"), sha256=sha256), tmp_path / "out"
    )
    with torch.no_grad():
        assert torch.equal(clip.embed(PIXELS), donor.encode_image(PIXELS))
        assert torch.equal(clip.embed_texts(TEXTS), base.encode_text(clip.tokenize(TEXTS)))
    assert text_sha256(clip.model) == text_sha256(base) != text_sha256(donor)
    wrong = {"tower.ckpt": "0" * 64}
    with pytest.raises(UserError, match="tower.ckpt is not what was pinned"):
        convert_checkpoint(encoder(tmp_path / "in", visual=str(tmp_path / "tower.ckpt"), sha256=wrong), tmp_path / "no")


def test_what_does_not_fit_is_refused_by_name(tmp_path) -> None:
    """A missing, a foreign and a misshapen tensor are named; nothing is written, nothing interpolated."""
    write_folder(tmp_path / "in", "gelu")
    tower = model_of("gelu").visual.state_dict()
    broken = {key: value for key, value in tower.items() if key != "proj"} | {"projector.weight": torch.zeros(1)}
    broken["positional_embedding"] = torch.zeros(50, 128)
    torch.save(broken, tmp_path / "tower.ckpt")
    message = (
        r"does not fit VisionTransformer: proj is missing; projector.weight has no place; "
        r"positional_embedding is \[50, 128\] and must be \[17, 128\]$"
    )
    with pytest.raises(UserError, match=message):
        convert_checkpoint(encoder(tmp_path / "in", visual=str(tmp_path / "tower.ckpt")), tmp_path / "out")
    torch.save(model_of("gelu").state_dict(), tmp_path / "whole.ckpt")
    with pytest.raises(UserError, match=r"visual tower\) does not fit .* and \d+ more"):
        convert_checkpoint(encoder(tmp_path / "in", visual=str(tmp_path / "whole.ckpt")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["visual.proj", "text_projection"])
def test_weights_that_are_not_finite_are_refused(tmp_path, key) -> None:
    """NaN compares as false with everything, so an encoder of it would get a score: 75 % in a zero-shot set."""
    model = write_folder(tmp_path / "in", "gelu")
    with torch.no_grad():
        model.get_parameter(key)[0, 0] = torch.nan
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, tmp_path / "in/open_clip_model.safetensors")
    with pytest.raises(UserError, match=f"{key} is not finite"):
        convert_checkpoint(encoder(tmp_path / "in"), tmp_path / "out")
    with pytest.raises(UserError, match=f"{key} is not finite"):
        load_clip(tmp_path / "in")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("place", "key", "value", "message"),
    [
        ("text_cfg", "tokenizer_kwargs", {"trust_remote_code": True}, "got trust_remote_code"),
        ("text_cfg", "hf_model_name", "org/evil", "hf_model_name"),
        ("vision_cfg", "timm_model_name", "hf-hub:org/evil", "without a ':'"),
    ],
)
def test_a_configuration_cannot_run_code_or_fetch(tmp_path, place, key, value, message) -> None:
    """What open_clip would hand to the hub's loaders is refused, on import and on load."""
    write_folder(tmp_path, "siglip")
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    config["model_cfg"][place][key] = value
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    for read in (load_clip, lambda folder: convert_checkpoint(encoder(folder), folder / "out")):
        with pytest.raises(UserError, match=message):
            read(tmp_path)


def test_a_tokenizer_cannot_run_code(tmp_path) -> None:
    """A tokenizer that names a Python file of its folder is not asked about; its file is not run."""
    write_folder(tmp_path, "siglip")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config |= {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "Evil"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    try:
        load_clip(tmp_path)
    except UserError:
        pass
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("family", ["gelu", "siglip"])
def test_preprocessing_is_the_models_own(tmp_path, family) -> None:
    """Against the steps by hand: shortest side and centre crop for CLIP, a squash and 0.5/0.5 for SigLIP."""
    write_folder(tmp_path / "in", family)
    clip = convert_checkpoint(encoder(tmp_path / "in"), tmp_path / "out")
    noise = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    size = [32, 32] if family == "siglip" else [32]
    resized = F.resize(image, size, F.InterpolationMode.BICUBIC)
    expected = F.to_tensor(F.center_crop(resized, [32, 32]))
    cfg = PREPROCESS_CFG[family]
    assert torch.allclose(clip.preprocess(image), F.normalize(expected, cfg["mean"], cfg["std"]), atol=1e-6)


def test_siglips_tokenizer_lies_in_the_folder(tmp_path) -> None:
    """Token ids by hand: lower case, no punctuation, </s>, padding to the context; nothing is asked of a hub."""
    write_folder(tmp_path / "in", "siglip")
    tokenize = convert_checkpoint(encoder(tmp_path / "in"), tmp_path / "out").tokenize
    words = ["two", "blue", "<unk>", "of", "a", "square", "</s>"]  # "squares" is not in the vocabulary
    assert tokenize(TEXTS[1:])[0].tolist() == [WORDS.index(word) for word in words] + [0] * 5


def test_the_command_line_makes_a_folder_from_a_released_tower(tmp_path, capsys, monkeypatch) -> None:
    """`un2clip convert --from BASE --visual FILE --to FOLDER`; toy weights are no answer."""
    monkeypatch.chdir(Path(__file__).parents[2])
    write_folder(tmp_path / "in", "quickgelu")
    donor = model_of("quickgelu", seed=1)
    torch.save(donor.visual.state_dict(), tmp_path / "openai_vit_l_14_224.ckpt")
    words = ["convert", f"--from={tmp_path / 'in'}", f"--visual={tmp_path / 'openai_vit_l_14_224.ckpt'}"]
    assert main([*words, f"--to={tmp_path / 'out'}"]) == 0
    saved = load_file(tmp_path / "out" / "open_clip_model.safetensors")
    assert all(torch.equal(saved[f"visual.{key}"], value) for key, value in donor.visual.state_dict().items())
    assert main(["convert", f"--to={tmp_path / 'no'}"]) == 2
    assert "say whose weights" in capsys.readouterr().err
