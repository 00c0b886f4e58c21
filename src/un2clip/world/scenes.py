"""The laptop world: scenes of simple shapes with known attributes, rendered with numpy.

A scene is a row of small integers, one column an attribute. Captions are web-like: they nearly always
name the object, often its colour and seldom anything else, sometimes wrongly; so a CLIP trained on them
acquires the blind spots that MMVP describes (arXiv 2401.06209), and each of MMVP-VLM's nine patterns has
its counterpart here. The same seed gives the same bytes. This is never reported as the real benchmark.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]

#: Values of each attribute; a scene holds one index an attribute. "none" means that it is not there.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "object": ("circle", "square", "cross", "triangle", "arrow", "moon"),
    "colour": ("red", "green", "blue", "yellow", "purple", "orange"),
    "count": ("one", "two", "three"),
    "position": ("centre", "left", "right", "top", "bottom"),
    "orientation": ("right", "down", "left", "up"),
    "state": ("solid", "hollow"),
    "feature": ("plain", "dotted"),
    "texture": ("smooth", "striped"),
    "distance": ("near", "far"),
    "glyph": ("none", "T", "L", "O", "X"),
    "relation": ("none", "above", "below", "left", "right"),
    "background": ("black", "grey", "white", "brown"),
}
COLUMN = {name: i for i, name in enumerate(ATTRIBUTES)}
DETAILS = [i for name, i in COLUMN.items() if name not in ("object", "colour", "background")]
#: Objects whose orientation can be seen.
POINTING = ("triangle", "arrow", "moon")

RGB = np.array(
    [[220, 40, 40], [40, 180, 60], [50, 80, 230], [240, 220, 50], [160, 60, 200], [250, 140, 30]], np.float32
)
BACKGROUND = np.array([[15, 15, 20], [110, 110, 115], [235, 235, 235], [120, 80, 50]], np.float32)
#: Width of a hollow object's outline, in radii: less than half of its thinnest part.
RIM = np.array([0.40, 0.40, 0.20, 0.24, 0.18, 0.18], np.float32)
FONT = {"T": "11101001001001", "L": "10010010010111", "O": "11110110110111", "X": "10110101010101"}


@dataclass(frozen=True, kw_only=True)
class Captions:
    """How a caption is written.

    Attributes:
        object: probability that the object is named (else "a shape").
        colour: probability that its colour is named.
        detail: probability, for each other attribute that is there, that it is named.
        wrong: probability that a named detail is named wrongly, as people do on the web.
    """

    object: float
    colour: float
    detail: float
    wrong: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be a probability between 0 and 1, got {value}")


def check_plain(plain: float) -> None:
    """Raise a ValueError unless scenes can be drawn with it: at 1 no detail would ever differ."""
    if not 0 <= plain < 1:
        raise ValueError(f"plain must be a probability below 1, got {plain}")


def draw(rng: np.random.Generator, n: int, *, plain: float, heldout: bool) -> Ints:
    """Draw scenes, (n, attributes) int64, from the training half of the world or from the held-out one.

    Objects, colours and backgrounds are uniform; every other attribute has its first, plain value with
    probability `plain` and is uniform otherwise.

    The two never share a combination of attributes: which half a combination belongs to is decided by
    its own code, one in eight being held out.
    """
    kept = np.zeros((0, len(ATTRIBUTES)), np.int64)
    while len(kept) < n:
        scenes = np.stack([rng.integers(len(values), size=4 * n) for values in ATTRIBUTES.values()], axis=1)
        scenes[:, DETAILS] *= rng.random((4 * n, len(DETAILS))) >= plain
        scenes = canonical(scenes)
        kept = np.concatenate([kept, scenes[is_heldout(scenes) == heldout]])
    return kept[:n]


def canonical(scenes: Ints) -> Ints:
    """Clear what can't be seen, so that one picture has one code.

    The orientation of an object that does not point is 0; a ball beside the object needs room, so a
    relation implies one object in the centre.
    """
    scenes = scenes.copy()
    pointing = np.isin(scenes[:, COLUMN["object"]], [ATTRIBUTES["object"].index(name) for name in POINTING])
    scenes[~pointing, COLUMN["orientation"]] = 0
    single = (scenes[:, COLUMN["count"]] == 0) & (scenes[:, COLUMN["position"]] == 0)
    scenes[~single, COLUMN["relation"]] = 0
    return scenes


def is_heldout(scenes: Ints) -> NDArray[np.bool_]:
    """Whether each combination of attributes belongs to the held-out half of the world, (n,) bool."""
    return hashed(scenes) % np.uint64(8) == 0


def hashed(scenes: Ints) -> NDArray[np.uint64]:
    """A number for each combination of attributes that looks random and is always the same, (n,) uint64."""
    code = np.zeros(len(scenes), np.uint64)
    for column, values in enumerate(ATTRIBUTES.values()):
        code = code * np.uint64(len(values)) + scenes[:, column].astype(np.uint64)
    # splitmix64's finaliser: a plain product is linear, and two neighbours would never both be held out
    code = (code ^ (code >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    code = (code ^ (code >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return code ^ (code >> np.uint64(31))


def render(rng: np.random.Generator, scenes: Ints, image_px: int) -> NDArray[np.uint8]:
    """Render scenes to (n, image_px, image_px, 3) uint8; what no caption tells (jitter, light) comes from `rng`."""
    return render_with_masks(rng, scenes, image_px)[0]


def render_with_masks(
    rng: np.random.Generator, scenes: Ints, image_px: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The pictures of `render`, and where each one shows its objects, (n, image_px, image_px) bool.

    A pixel belongs to an object if its centre does. What shows through a hollow object does not, nor a letter on it;
    balls are no objects, and touch none.
    """
    n = len(scenes)
    attribute = {name: scenes[:, i] for name, i in COLUMN.items()}
    grid = (np.arange(image_px, dtype=np.float32) + 0.5) / image_px * 2 - 1  # pixel centres in [-1, 1]
    y, x = np.meshgrid(grid, grid, indexing="ij")
    edge = image_px / 2  # a signed distance times this is in pixels: one pixel of anti-aliasing

    light = rng.normal(0, 0.12, (n, 2)).astype(np.float32)
    shade = 1 + light[:, :1, None] * x + light[:, 1:, None] * y  # (n, h, w)
    canvas = np.repeat(BACKGROUND[attribute["background"], None, None], image_px, 1).repeat(image_px, 2)
    canvas = np.clip(canvas + rng.normal(0, 8, (n, 1, 1, 3)).astype(np.float32), 0, 255)
    masks = np.zeros((n, image_px, image_px), np.bool_)

    count = attribute["count"] + 1
    radius = np.array([[0.62, 0.44, 0.31], [0.42, 0.32, 0.24]], np.float32)[attribute["distance"], attribute["count"]]
    radius *= rng.uniform(0.92, 1.08, n).astype(np.float32)
    centre = 0.38 * np.array([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]], np.float32)[attribute["position"]]
    centre = centre + rng.uniform(-0.08, 0.08, (n, 2)).astype(np.float32)
    upright = np.isin(attribute["position"], [1, 2])  # at the left and right, several objects stand in a column
    step = np.where(upright[:, None], [[0.0, 1.0]], [[1.0, 0.0]]).astype(np.float32) * 2.15 * radius[:, None]
    colour = np.clip(RGB[attribute["colour"]] + rng.normal(0, 12, (n, 3)).astype(np.float32), 0, 255)

    for k in range(3):
        scene = np.flatnonzero(count > k)
        offset = centre[scene] + (k - (count[scene, None] - 1) / 2).astype(np.float32) * step[scene]
        u, v = _local(x, y, offset, radius[scene], attribute["orientation"][scene])
        distance = _signed_distance(u, v, attribute["object"][scene])
        rim = (RIM[attribute["object"]] * (attribute["state"] == 1))[scene, None, None]
        hollow = np.where(rim > 0, np.maximum(distance, -(distance + rim)), distance)
        stripes = (attribute["texture"][scene] == 1)[:, None, None] & (np.sin(u * 7 + v * 7) > 0)
        paint = colour[scene, None, None] * np.where(stripes, 0.45, 1.0)[..., None]
        _blend(canvas, scene, paint, hollow, radius[scene] * edge)
        dot = np.where((attribute["feature"][scene] == 1)[:, None, None], np.hypot(u, v) - 0.3, 9.0)
        _blend(canvas, scene, np.float32(250), dot, radius[scene] * edge)
        masks[scene] |= (hollow < 0) | (dot < 0)

    beside = np.flatnonzero(attribute["relation"] > 0)
    direction = np.array([[0, 0], [0, -1], [0, 1], [-1, 0], [1, 0]], np.float32)[attribute["relation"][beside]]
    ball = centre[beside] - direction * (radius[beside, None] + 0.27)  # "above a ball": the ball is below
    away = np.hypot(x - ball[:, 0, None, None], y - ball[:, 1, None, None]) - 0.17
    _blend(canvas, beside, np.array([30, 220, 220], np.float32), away, np.full(len(beside), edge, np.float32))

    canvas *= shade[..., None]
    _write(canvas, masks, attribute["glyph"], rng.integers(4, size=n), max(1, image_px // 32))
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8), masks


def _local(x: Floats, y: Floats, centre: Floats, radius: Floats, orientation: Ints) -> tuple[Floats, Floats]:
    """Pixel coordinates in the object's own frame: unit radius, pointing along +u."""
    u, v = x - centre[:, 0, None, None], y - centre[:, 1, None, None]
    cos = np.array([1, 0, -1, 0], np.float32)[orientation][:, None, None]
    sin = np.array([0, 1, 0, -1], np.float32)[orientation][:, None, None]
    return (cos * u + sin * v) / radius[:, None, None], (cos * v - sin * u) / radius[:, None, None]


def _signed_distance(u: Floats, v: Floats, kind: Ints) -> Floats:
    """Distance to each object's outline in units of its radius, negative inside, (n, h, w)."""
    distance = np.empty_like(u)
    for index, name in enumerate(ATTRIBUTES["object"]):
        chosen = kind == index
        a, b = u[chosen], np.abs(v[chosen])
        match name:
            case "circle":
                d = np.hypot(a, b) - 0.95
            case "square":
                d = np.maximum(np.abs(a), b) - 0.85
            case "cross":
                d = np.minimum(np.maximum(np.abs(a) - 1, b - 0.42), np.maximum(np.abs(a) - 0.42, b - 1))
            case "triangle":
                d = np.maximum(-a - 0.75, (a - 1) * 0.457 + b * 0.889)
            case "arrow":
                d = np.minimum(
                    np.maximum(np.maximum(-a - 1, a - 0.1), b - 0.38), np.maximum(-a, (a - 1) * 0.7 + b * 0.71)
                )
            case _:  # moon, open towards +u
                d = np.maximum(np.hypot(a, b) - 1, 0.85 - np.hypot(a - 0.65, b))
        distance[chosen] = d
    return distance


def _blend(canvas: Floats, scene: Ints, paint: Floats | np.float32, distance: Floats, sharpness: Floats) -> None:
    cover = np.clip(0.5 - distance * sharpness[:, None, None], 0, 1)[..., None]
    canvas[scene] = canvas[scene] * (1 - cover) + paint * cover


def _write(canvas: Floats, masks: NDArray[np.bool_], glyph: Ints, corner: Ints, pixel: int) -> None:
    """Write each scene's letter, five pixels high, into one of the four corners; black on light, white on dark."""
    size = canvas.shape[1]
    height, width = 5 * pixel, 3 * pixel
    for index, letter in enumerate(ATTRIBUTES["glyph"]):
        if letter == "none":
            continue
        bits = np.array([int(bit) for bit in FONT[letter].ljust(15, "0")], np.float32).reshape(5, 3)
        bits[4] = {"T": (0, 1, 0), "L": (1, 1, 1), "O": (1, 1, 1), "X": (1, 0, 1)}[letter]
        mask = bits.repeat(pixel, 0).repeat(pixel, 1)[..., None]
        for where in range(4):
            chosen = np.flatnonzero((glyph == index) & (corner == where))
            top = pixel if where < 2 else size - pixel - height
            left = pixel if where % 2 == 0 else size - pixel - width
            window = canvas[chosen, top : top + height, left : left + width]
            ink = np.where(window.mean((1, 2, 3), keepdims=True) > 128, 0.0, 255.0)
            canvas[chosen, top : top + height, left : left + width] = window * (1 - mask) + ink * mask
            masks[chosen, top : top + height, left : left + width] &= mask[..., 0] == 0


def captions(rng: np.random.Generator, scenes: Ints, how: Captions) -> list[str]:
    """A web-like caption for each scene: what is named, and what is named wrongly, drawn from `rng`."""
    scenes = scenes.copy()
    for name, values in ATTRIBUTES.items():
        if name not in ("object", "colour"):
            wrong = (rng.random(len(scenes)) < how.wrong) & (scenes[:, COLUMN[name]] >= 0)
            scenes[wrong, COLUMN[name]] = rng.integers(len(values), size=int(wrong.sum()))
    chance = np.full((len(scenes), len(ATTRIBUTES)), how.detail)
    chance[:, COLUMN["object"]], chance[:, COLUMN["colour"]] = how.object, how.colour
    named = rng.random(chance.shape) < chance
    return [describe(scene, set(np.flatnonzero(row))) for scene, row in zip(scenes, named, strict=True)]


def describe(scene: Ints, named: set[int]) -> str:
    """One scene in words: the attributes whose columns are in `named`, in a fixed order."""

    def word(name: str) -> str:
        return ATTRIBUTES[name][scene[COLUMN[name]]] if COLUMN[name] in named else ""

    shape = word("object")
    points = ATTRIBUTES["object"][scene[COLUMN["object"]]] in POINTING and COLUMN["orientation"] in named
    plural = word("count") in ("two", "three")
    noun = (shape or "shape") + (("es" if shape == "cross" else "s") if plural else "")
    texture = "striped" if word("texture") == "striped" else ""
    phrase = " ".join(part for part in (texture, word("state"), word("colour"), noun) if part)
    phrase = f"{word('count') or ('an' if phrase[0] in 'aeiou' else 'a')} {phrase}"
    if points:
        phrase += f" pointing {word('orientation')}"
    if COLUMN["feature"] in named:
        phrase += " with a dot" if word("feature") == "dotted" else " without a dot"
    if word("relation") not in ("", "none"):
        phrase += {"above": " above a ball", "below": " below a ball"}.get(
            word("relation"), f" {word('relation')} of a ball"
        )
    if COLUMN["position"] in named:
        phrase += " in the centre" if word("position") == "centre" else f" at the {word('position')}"
    if word("glyph") not in ("", "none"):
        phrase += f" and the letter {word('glyph')}"
    if COLUMN["background"] in named:
        phrase += f" on {word('background')}"
    return phrase + {"near": ", close up", "far": ", far away", "": ""}[word("distance")]
