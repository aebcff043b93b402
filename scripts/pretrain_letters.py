"""Pretrain the `letters` backbone and write `letters_resnet.npz`.

    taskset -c 1 python scripts/pretrain_letters.py

Seed 0 took 16 minutes on one core shared with other work (25 seconds a round,
so about 9 minutes, is what an idle core needs) and printed at its end

    fresh drawings: accuracy 0.814
    fonts held out: accuracy 0.746

for a file of 332,869 bytes.
The accuracies are over the 372 classes, on 20,000 distorted drawings each. The
data depend on the seed alone; the weights also on how the machine rounds.

Needs Matplotlib (for its fonts), Pillow and SciPy besides the package. The
letters come from the Latin, Greek, Cyrillic, Armenian, Georgian, Hebrew,
Tifinagh and Canadian syllabic alphabets. Letters that a font draws alike (A in
three alphabets) are one class. No digit of any script is drawn. Letters outside
ASCII that are drawn much like one of 1 to 9 are left out too (`DIGIT_SHAPES`);
those like O, S or B stay.

A glyph is stored as the signed distance to its outline. A drawing warps that
map (rotation, slant, stretch, a smooth random bend), adds an offset that sets
the stroke's width and thresholds it. Most drawings are then reduced to 8 x 8
and blown up to 16 x 16 again, and all get a random contrast, some noise and
sometimes colours.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
import time
import unicodedata

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from finetune_keras.backbones import letters  # noqa: E402

SIZE = letters.IMAGE_SIZE[0]  # side of the images the network is trained on
FINE = 32  # side of a drawing before it is reduced
COARSE = 8  # side of a drawing of low resolution
MASTER = 48  # side of a stored glyph
MARGIN = 6  # empty border of a stored glyph
POINTS = 110  # size the fonts are read at

TRAIN_FONTS = (
    [f"DejaVuSans{s}" for s in ("", "-Bold", "-Oblique", "-BoldOblique")]
    + [f"DejaVuSansMono{s}" for s in ("", "-Bold", "-Oblique", "-BoldOblique")]
    + [f"DejaVuSerif{s}" for s in ("", "-Bold", "-Italic", "-BoldItalic")]
    + ["STIXGeneral", "STIXGeneralBol", "STIXGeneralBolIta"]
    + ["cmr10", "cmb10", "cmmi10", "cmtt10"]
)
HELD_OUT_FONTS = ["STIXGeneralItalic", "cmss10", "cmti10"]

ALPHABETS = {
    "Latin": [*range(0x41, 0x5B), *range(0x61, 0x7B)]
    + [ord(c) for c in "ÆØÞßæøþðŁłŋƆƉƎƏƔƛƱɅɐɑɒɔɘəɛɟɣɤɥɯɰɸɹɾɿʀʁʃʇʊʌʍʎʔʕ"],
    "Greek": range(0x391, 0x3CA),
    "Cyrillic": [*range(0x402, 0x460), *range(0x472, 0x476), *range(0x4D8, 0x4DA)],
    "Armenian": range(0x531, 0x588),
    "Georgian": range(0x10D0, 0x10F1),
    "Hebrew": range(0x5D0, 0x5EB),
    "Tifinagh": range(0x2D30, 0x2D68),
    "Syllabics": range(0x1401, 0x1677),
}
# Letters with the shape of a digit: 3, 6, 4, 2, 5, 8, 1 in many guises.
DIGIT_SHAPES = set("ЗзӞӟҘҙӠӡƷƸƹʒʓȜȝɜɝɞбЧчҶҷҸҹӋӌӴӵƧƨƻƼƽƄƅȢȣԶՅՇշՉՎԿկզՁձՏջვპკნეჳჰჷⴻⵊⵒⵓᔥᔦᔧᔨ")
# Alphabets whose letters with dots or of small size are left out.
PLAIN_ONLY = {*ALPHABETS["Tifinagh"], *ALPHABETS["Syllabics"]}


def font_path(name: str) -> pathlib.Path:
    return pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"


def draw(font: ImageFont.FreeTypeFont, char: str) -> np.ndarray:
    """Draw a letter as a mask of twice the master's side, its ink filling it."""
    page = Image.new("L", (260, 260), 0)
    ImageDraw.Draw(page).text((70, 60), char, font=font, fill=255)
    ink = page.crop(page.getbbox())
    scale = 2 * (MASTER - 2 * MARGIN) / max(ink.size)
    width, height = (max(2, round(side * scale)) for side in ink.size)
    ink = ink.resize((width, height), Image.Resampling.BILINEAR)
    page = Image.new("L", (2 * MASTER, 2 * MASTER), 0)
    page.paste(ink, ((2 * MASTER - width) // 2, (2 * MASTER - height) // 2))
    return np.asarray(page) > 127


def outline_distance(mask: np.ndarray) -> np.ndarray:
    """Signed distance to the outline, positive in the ink, in sides of the letter."""
    distance = ndimage.distance_transform_edt(mask)
    distance -= ndimage.distance_transform_edt(~mask)
    distance = distance.reshape(MASTER, 2, MASTER, 2).mean((1, 3))
    return (distance / (2 * (MASTER - 2 * MARGIN))).astype("float32")


def choose_letters() -> tuple[list[str], np.ndarray]:
    """Return the letters and the class of each."""
    font = ImageFont.truetype(font_path("DejaVuSans"), POINTS)
    covered = FT2Font(str(font_path("DejaVuSans"))).get_charmap()
    chosen, masks = [], []
    for code in (code for alphabet in ALPHABETS.values() for code in alphabet):
        char = chr(code)
        if code not in covered or char in DIGIT_SHAPES:
            continue
        if unicodedata.decomposition(char) or unicodedata.category(char)[0] != "L":
            continue
        if unicodedata.numeric(char, None) is not None:
            raise RuntimeError(f"{char!r} is a digit.")
        mask = draw(font, char)
        if code in PLAIN_ONLY:
            _, top, _, bottom = font.getbbox(char)
            if ndimage.label(mask)[1] != 1 or bottom - top < 60:
                continue
        chosen.append(char)
        masks.append(mask)
    flat = np.stack(masks).reshape(len(masks), -1).astype("float32")
    both, area = flat @ flat.T, flat.sum(1)
    alike = both / (area[:, None] + area[None] - both) > 0.8
    label = np.arange(len(chosen))
    for i in range(len(chosen)):
        for j in np.flatnonzero(alike[i, :i]):
            label[label == label[i]] = label[j]
    return chosen, np.unique(label, return_inverse=True)[1]


def load_glyphs() -> dict[str, np.ndarray]:
    """Read every letter in every font that has it.

    Returns:
        `distance` (n, MASTER, MASTER), the class `label` (n,), `held_out` (n,),
        true for the fonts kept for the test, and `width` (n,), half the
        strokes' width in sides of the letter.
    """
    chars, classes = choose_letters()
    distance, label, held_out = [], [], []
    for name in TRAIN_FONTS + HELD_OUT_FONTS:
        font = ImageFont.truetype(font_path(name), POINTS)
        covered = FT2Font(str(font_path(name))).get_charmap()
        for char, number in zip(chars, classes, strict=True):
            # Computer Modern has other letters at the codes beyond ASCII.
            if ord(char) not in covered or (name[:2] == "cm" and ord(char) > 127):
                continue
            mask = draw(font, char)
            if mask.sum() < 50:
                continue
            distance.append(outline_distance(mask))
            label.append(number)
            held_out.append(name in HELD_OUT_FONTS)
    distance = np.stack(distance)
    ridge = ndimage.maximum_filter(distance, (0, 3, 3)) == distance
    ridge &= distance > 0.01
    width = (distance * ridge).sum((1, 2)) / np.maximum(ridge.sum((1, 2)), 1)
    return {
        "distance": distance,
        "label": np.array(label, "int32"),
        "held_out": np.array(held_out),
        "width": width.astype("float32"),
    }


def bilinear(out: int, size: int) -> np.ndarray:
    """Matrix of a bilinear resize from `size` to `out` points."""
    at = np.clip((np.arange(out) + 0.5) * size / out - 0.5, 0, size - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(size))).astype("float32")


def smooth_field(rng: np.random.Generator, knots: int, scale: np.ndarray) -> np.ndarray:
    """Random smooth displacements (n, 2, FINE, FINE): a spline through noise."""
    noise = rng.standard_normal((len(scale), 2, knots, knots)).astype("float32")
    at = (np.arange(FINE) + 0.5) / FINE * (knots - 1)
    d = np.abs(at[:, None] - np.arange(knots))
    spline = np.where(d < 1, 2 / 3 - d**2 + d**3 / 2, np.where(d < 2, (2 - d) ** 3 / 6, 0))
    spline = (spline / spline.sum(1, keepdims=True)).astype("float32")
    field = np.einsum("yi,nkij,xj->nkyx", spline, noise, spline, optimize=True)
    return field * scale[:, None, None, None]


def ink(rng: np.random.Generator, glyphs: dict, pick: np.ndarray) -> np.ndarray:
    """Draw the picked glyphs: ink in 0..1, (n, FINE, FINE)."""
    n = len(pick)

    def normal(mean: float, deviation: float) -> np.ndarray:
        return rng.normal(mean, deviation, n).astype("float32")[:, None, None]

    angle, slant = normal(0, 0.14), normal(0, 0.2)
    stretch_x, stretch_y = np.exp(normal(-0.05, 0.18)), np.exp(normal(0.04, 0.1))
    shift_x, shift_y = normal(0, 0.05), normal(0, 0.05)
    axis = ((np.arange(FINE) + 0.5) / FINE - 0.5).astype("float32")
    x, y = axis[None, None, :] - shift_x, axis[None, :, None] - shift_y
    u = (np.cos(angle) * x + np.sin(angle) * y) / stretch_x
    v = (np.cos(angle) * y - np.sin(angle) * x) / stretch_y
    amount = np.abs(normal(0, 1))[:, 0, 0]
    bend = smooth_field(rng, 4, 0.055 * amount) + smooth_field(rng, 6, 0.02 * amount)
    u, v = u + slant * v + bend[:, 0], v + bend[:, 1]

    side, middle = MASTER - 2 * MARGIN, (MASTER - 1) / 2
    u = np.clip(u * side + middle, 0, MASTER - 1.001)
    v = np.clip(v * side + middle, 0, MASTER - 1.001)
    left, top = u.astype("int32"), v.astype("int32")
    u, v = u - left, v - top
    at = (pick.astype("int64") * MASTER * MASTER)[:, None, None] + top * MASTER + left
    flat = glyphs["distance"].reshape(-1)
    upper = flat[at] * (1 - u) + flat[at + 1] * u
    lower = flat[at + MASTER] * (1 - u) + flat[at + MASTER + 1] * u
    distance = upper * (1 - v) + lower * v

    width = rng.uniform(0.045, 0.11, n).astype("float32")
    offset = np.clip(width - glyphs["width"][pick], -0.03, 0.08)[:, None, None]
    uneven = smooth_field(rng, 3, np.full(n, 0.012, "float32"))[:, 0]
    return np.clip(0.5 + (distance + offset + uneven) * FINE, 0, 1)


def render(rng: np.random.Generator, glyphs: dict, pick: np.ndarray) -> np.ndarray:
    """Draw the picked glyphs as uint8 images (n, SIZE, SIZE, 3)."""
    n = len(pick)
    drawing = ink(rng, glyphs, pick)
    # A tenth have a bit of another letter at the left or right border.
    some = np.flatnonzero(rng.random(n) < 0.1)
    others = ink(rng, glyphs, rng.integers(0, len(glyphs["distance"]), len(some)))
    shifts = rng.integers(22, 28, len(some)) * rng.choice([-1, 1], len(some))
    for i, other, shift in zip(some, others, shifts, strict=True):
        if shift > 0:
            beside, seen = drawing[i, :, shift:], other[:, : FINE - shift]
        else:
            beside, seen = drawing[i, :, :shift], other[:, -shift:]
        np.maximum(beside, seen, out=beside)

    def reduce(side: int) -> np.ndarray:
        return drawing.reshape(n, side, FINE // side, side, FINE // side).mean((2, 4))

    up = bilinear(SIZE, COARSE)
    coarse = up @ (np.round(reduce(COARSE) * 16) / 16) @ up.T
    blur = np.where(rng.random(n) < 0.65, 1.0, rng.random(n)).astype("float32")
    blur = blur[:, None, None]
    drawing = blur * coarse + (1 - blur) * reduce(SIZE)
    gain = rng.uniform(0.9, 1.9, n).astype("float32")[:, None, None]
    drawing = np.clip(drawing * gain, 0, 1)[..., None]

    # Most are light on dark without colour, the others have any two colours.
    dark = rng.uniform(0, 0.08, (n, 1)) * (rng.random((n, 1)) < 0.4) * np.ones(3)
    light = rng.uniform(0.8, 1, (n, 1)) * np.ones(3)
    coloured = rng.random(n) < 0.3
    one, two = rng.random((2, n, 3))
    coloured &= np.abs(one.mean(1) - two.mean(1)) > 0.3
    dark[coloured], light[coloured] = one[coloured], two[coloured]
    dark, light = (c.astype("float32")[:, None, None] for c in (dark, light))
    image = dark + drawing * (light - dark)
    grain = np.abs(rng.normal(0, 0.03, n)) * (rng.random(n) < 0.5)
    grain = grain.astype("float32")[:, None, None, None]
    image += grain * rng.standard_normal(image.shape, dtype="float32")
    return np.clip(image * 255 + 0.5, 0, 255).astype("uint8")


def drawings(
    rng: np.random.Generator, glyphs: dict, count: int, held_out: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Draw `count` images and their classes: any class, then any of its glyphs."""
    usable = np.flatnonzero(glyphs["held_out"] == held_out)
    labels = glyphs["label"][usable]
    by_class = [usable[labels == k] for k in np.unique(labels)]
    pick = np.array(
        [
            of_class[rng.integers(len(of_class))]
            for of_class in (by_class[k] for k in rng.integers(0, len(by_class), count))
        ]
    )
    parts = [render(rng, glyphs, pick[i : i + 1024]) for i in range(0, count, 1024)]
    return np.concatenate(parts), glyphs["label"][pick]


def save(model: keras.Model, path: pathlib.Path) -> None:
    """Write the weights as float16 arrays, in the form `load_weights` reads."""
    arrays = {
        f"{layer.name}/{variable.name}": keras.ops.convert_to_numpy(variable)
        for layer in model.layers
        for variable in layer.variables
    }
    arrays = {key: array.astype("float16") for key, array in arrays.items()}
    np.savez_compressed(path, **arrays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--drawings", type=int, default=51_200, help="a round's")
    parser.add_argument("--out", type=pathlib.Path, default=letters.WEIGHTS_PATH)
    args = parser.parse_args()

    start = time.perf_counter()
    keras.utils.set_random_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    glyphs = load_glyphs()
    classes = int(glyphs["label"].max()) + 1
    print(f"{len(glyphs['label'])} glyphs of {classes} classes", flush=True)

    backbone = letters.architecture((SIZE, SIZE, 3))
    inputs = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Rescaling(1 / 127.5, -1)(inputs)
    x = keras.layers.GlobalAveragePooling2D()(backbone(x))
    model = keras.Model(inputs, keras.layers.Dense(classes)(x))
    batch, warmup = 128, 300
    rate = keras.optimizers.schedules.CosineDecay(
        0.0,
        args.rounds * args.drawings // batch - warmup,
        alpha=0.003,
        warmup_target=3e-3,
        warmup_steps=warmup,
    )
    model.compile(
        keras.optimizers.AdamW(rate, weight_decay=0.02),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    for number in range(1, args.rounds + 1):
        images, labels = drawings(rng, glyphs, args.drawings)
        log = model.fit(images, labels, batch_size=batch, verbose=0).history
        print(
            f"round {number}: loss {log['loss'][0]:.3f}, accuracy "
            f"{log['accuracy'][0]:.3f}, {time.perf_counter() - start:.0f} s",
            flush=True,
        )
    rng = np.random.default_rng(args.seed + 10_000)
    for held_out, text in ((False, "fresh drawings"), (True, "fonts held out")):
        images, labels = drawings(rng, glyphs, 20_000, held_out)
        _, accuracy = model.evaluate(images, labels, batch_size=500, verbose=0)
        print(f"{text}: accuracy {accuracy:.3f}")
    save(backbone, args.out)
    print(f"{args.out}: {args.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
