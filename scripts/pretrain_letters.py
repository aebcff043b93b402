"""Pretrain the `letters` backbone on letters drawn by computer."""

from __future__ import annotations

import argparse
import importlib.util
import os
import pathlib
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
OUT = ROOT / "finetune_keras" / "backbones" / "letters_resnet.npz"
SIZE = 16  # images are SIZE x SIZE
MASTER = 48  # side of a stored glyph
MARGIN = 6  # empty border of a stored glyph

TRAIN_FONTS = (
    [f"DejaVuSans{s}" for s in ("", "-Bold", "-Oblique", "-BoldOblique")]
    + [f"DejaVuSansMono{s}" for s in ("", "-Bold", "-Oblique", "-BoldOblique")]
    + [f"DejaVuSerif{s}" for s in ("", "-Bold", "-Italic", "-BoldItalic")]
    + ["STIXGeneral", "STIXGeneralBol", "STIXGeneralBolIta"]
    + ["cmr10", "cmb10", "cmmi10", "cmtt10"]
)
HELD_OUT_FONTS = ["STIXGeneralItalic", "cmss10", "cmti10"]

# No digit is drawn. These letters are left out as well: they have the shape of one.
DIGIT_SHAPES = set("ЗзӞӟҘҙӠӡƷƸƹʒʓȜȝɜɝɞбЧчҶҷҸҹӋӌӴӵƧƨƻƼƽƄƅȢȣԶՅՇշՉՎԿկզՁձՏջვპკნეჳჰჷⴻⵊⵒⵓᔥᔦᔧᔨ")
SCRIPTS = {
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


def letters() -> list[str]:
    chars = []
    for codes in SCRIPTS.values():
        for code in codes:
            c = chr(code)
            if c in DIGIT_SHAPES or unicodedata.decomposition(c):
                continue
            if not unicodedata.category(c).startswith("L"):
                continue
            assert unicodedata.numeric(c, None) is None
            chars.append(c)
    return chars


def draw(font: ImageFont.FreeTypeFont, char: str) -> np.ndarray | None:
    """The glyph cropped to its ink, larger side scaled to the master, as a mask."""
    big = Image.new("L", (260, 260), 0)
    ImageDraw.Draw(big).text((70, 60), char, font=font, fill=255)
    box = big.getbbox()
    if box is None:
        return None
    big = big.crop(box)
    side = 2 * (MASTER - 2 * MARGIN)
    scale = side / max(big.size)
    size = tuple(max(2, round(s * scale)) for s in big.size)
    big = big.resize(size, Image.Resampling.BILINEAR)
    page = Image.new("L", (2 * MASTER, 2 * MASTER), 0)
    page.paste(big, ((2 * MASTER - size[0]) // 2, (2 * MASTER - size[1]) // 2))
    return np.asarray(page) > 127


def distance(mask: np.ndarray) -> np.ndarray:
    """Signed distance to the outline (positive inside), in units of the glyph's side."""
    d = ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask)
    d = d.reshape(MASTER, 2, MASTER, 2).mean((1, 3))
    return (d / (2 * (MASTER - 2 * MARGIN))).astype("float32")


def load_glyphs() -> dict[str, np.ndarray]:
    folder = pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    chars = letters()
    reference = ImageFont.truetype(folder / "DejaVuSans.ttf", 110)
    covered = FT2Font(str(folder / "DejaVuSans.ttf")).get_charmap()
    kept, masks = [], []
    for c in chars:
        if ord(c) not in covered:
            continue
        if ord(c) in SCRIPTS["Syllabics"] or ord(c) in SCRIPTS["Tifinagh"]:
            box = reference.getbbox(c)
            mask = draw(reference, c)
            if ndimage.label(mask)[1] != 1 or box[3] - box[1] < 60:
                continue
        kept.append(c)
        masks.append(draw(reference, c))
    # Letters drawn alike (A in three alphabets, c and C) are one class.
    flat = np.stack(masks).reshape(len(masks), -1).astype("float32")
    both = flat @ flat.T
    area = flat.sum(1)
    alike = both / (area[:, None] + area[None] - both) > 0.8
    label = np.arange(len(kept))
    for i in range(len(kept)):
        for j in np.flatnonzero(alike[i, :i]):
            label[label == label[i]] = label[j]
    classes, label = np.unique(label, return_inverse=True)
    glyphs, labels, held = [], [], []
    for name in TRAIN_FONTS + HELD_OUT_FONTS:
        path = folder / f"{name}.ttf"
        font = ImageFont.truetype(path, 110)
        covered = FT2Font(str(path)).get_charmap()
        for c, k in zip(kept, label):
            if ord(c) not in covered or (name.startswith("cm") and ord(c) > 127):
                continue
            mask = draw(font, c)
            if mask is None or mask.sum() < 50:
                continue
            glyphs.append(distance(mask))
            labels.append(k)
            held.append(name in HELD_OUT_FONTS)
    glyphs = np.stack(glyphs)
    # Half the width of the strokes: the mean depth of the outline's deepest points.
    ridge = ndimage.maximum_filter(glyphs, (0, 3, 3)) == glyphs
    ridge &= glyphs > 0.01
    width = (glyphs * ridge).sum((1, 2)) / np.maximum(ridge.sum((1, 2)), 1)
    return {
        "sdf": glyphs,
        "label": np.array(labels),
        "held": np.array(held),
        "width": width.astype("float32"),
        "names": [
            "".join(kept[i] for i in np.flatnonzero(label == k)) for k in range(len(classes))
        ],
    }


def linear_map(out: int, size: int) -> np.ndarray:
    """Matrix of a bilinear resize from `size` to `out` points (half-pixel centres)."""
    pos = np.clip((np.arange(out) + 0.5) * size / out - 0.5, 0, size - 1)
    return np.maximum(0, 1 - np.abs(pos[:, None] - np.arange(size))).astype("float32")


FINE = 32
UP = linear_map(SIZE, 8)


def _field(rng, n: int, knots: int, scale: np.ndarray) -> np.ndarray:
    grid = rng.standard_normal((n, 2, knots, knots)).astype("float32")
    m = _cubic(FINE, knots)
    return np.einsum("yi,nkij,xj->nkyx", m, grid, m, optimize=True) * scale[:, None, None, None]


def _cubic(out: int, knots: int) -> np.ndarray:
    t = (np.arange(out) + 0.5) / out * (knots - 1)
    d = np.abs(t[:, None] - np.arange(knots))
    w = np.where(d < 1, 2 / 3 - d**2 + d**3 / 2, np.where(d < 2, (2 - d) ** 3 / 6, 0))
    return (w / w.sum(1, keepdims=True)).astype("float32")


def ink(rng, glyphs, pick: np.ndarray, strength: float = 1.0) -> np.ndarray:
    """Coverage in 0..1 on a FINE x FINE grid of the picked glyphs, bent and inked."""
    n = len(pick)
    f32 = lambda a: np.asarray(a, "float32")
    angle = f32(rng.normal(0, 0.14, n) * strength)
    slant = f32(rng.normal(0, 0.2, n) * strength)
    sx = f32(np.exp(rng.normal(-0.05, 0.18, n) * strength))
    sy = f32(np.exp(rng.normal(0.04, 0.1, n) * strength))
    tx, ty = f32(rng.normal(0, 0.05, (2, n)) * strength)
    cos, sin = np.cos(angle), np.sin(angle)
    axis = f32((np.arange(FINE) + 0.5) / FINE - 0.5)
    y, x = axis[None, :, None], axis[None, None, :]
    c = lambda a: a[:, None, None]
    x0, y0 = x - c(tx), y - c(ty)
    u = (c(cos) * x0 + c(sin) * y0) / c(sx)
    v = (c(-sin) * x0 + c(cos) * y0) / c(sy)
    u = u + c(slant) * v
    amount = f32(np.abs(rng.normal(0, 1, n)) * strength)
    bend = _field(rng, n, 4, 0.055 * amount) + _field(rng, n, 6, 0.02 * amount)
    u, v = u + bend[:, 0], v + bend[:, 1]
    # to master pixels
    side = MASTER - 2 * MARGIN
    px = np.clip(u * side + (MASTER - 1) / 2, 0, MASTER - 1.001)
    py = np.clip(v * side + (MASTER - 1) / 2, 0, MASTER - 1.001)
    ix, iy = px.astype("int32"), py.astype("int32")
    fx, fy = px - ix, py - iy
    flat = glyphs["sdf"].reshape(-1)
    at = (pick.astype("int64") * MASTER * MASTER)[:, None, None] + iy * MASTER + ix
    d = (flat[at] * (1 - fx) + flat[at + 1] * fx) * (1 - fy) + (
        flat[at + MASTER] * (1 - fx) + flat[at + MASTER + 1] * fx
    ) * fy
    target = f32(rng.uniform(0.045, 0.11, n))
    offset = np.clip(target - glyphs["width"][pick], -0.03, 0.08)
    d = d + c(offset) + _field(rng, n, 3, np.full(n, 0.012, "float32"))[:, 0]
    return np.clip(0.5 + d * FINE, 0, 1)


def render(rng, glyphs, pick: np.ndarray) -> np.ndarray:
    """uint8 images (n, SIZE, SIZE, 3)."""
    n = len(pick)
    a = ink(rng, glyphs, pick)
    # bits of other letters at the left or right border, on a tenth of the images
    k = np.flatnonzero(rng.random(n) < 0.1)
    if len(k):
        other = ink(rng, glyphs, rng.integers(0, len(glyphs["sdf"]), len(k)))
        shift = rng.integers(22, 28, len(k)) * rng.choice([-1, 1], len(k))
        for i, o, s in zip(k, other, shift):
            if s > 0:
                a[i, :, s:] = np.maximum(a[i, :, s:], o[:, : FINE - s])
            else:
                a[i, :, :s] = np.maximum(a[i, :, :s], o[:, -s:])
    fine = a.reshape(n, SIZE, FINE // SIZE, SIZE, FINE // SIZE).mean((2, 4))
    coarse = a.reshape(n, 8, FINE // 8, 8, FINE // 8).mean((2, 4))
    coarse = np.round(coarse * 16) / 16
    coarse = UP @ coarse @ UP.T
    mix = np.where(rng.random(n) < 0.65, 1.0, rng.random(n)).astype("float32")[:, None, None]
    a = mix * coarse + (1 - mix) * fine
    gain = rng.uniform(0.9, 1.9, n).astype("float32")[:, None, None]
    a = np.clip(a * gain, 0, 1)[..., None]
    # colours: most light on dark without colour; the rest any two colours apart
    low = rng.uniform(0, 0.08, (n, 1)) * (rng.random((n, 1)) < 0.4) * np.ones(3)
    high = rng.uniform(0.8, 1, (n, 1)) * np.ones(3)
    free = rng.random(n) < 0.3
    one, two = rng.random((2, n, 3))
    apart = np.abs(one.mean(1) - two.mean(1)) > 0.3
    free &= apart
    low[free], high[free] = one[free], two[free]
    low, high = (b.astype("float32")[:, None, None, :] for b in (low, high))
    image = low + a * (high - low)
    noise = np.abs(rng.normal(0, 0.03, n)) * (rng.random(n) < 0.5)
    image += (
        rng.standard_normal(image.shape, dtype="float32")
        * noise.astype("float32")[:, None, None, None]
    )
    return np.clip(image * 255 + 0.5, 0, 255).astype("uint8")


def dataset(rng, glyphs, n: int, held: bool = False):
    """n images, the classes equally often, every font of a class equally often."""
    use = np.flatnonzero(glyphs["held"] == held)
    by_class = [use[glyphs["label"][use] == k] for k in np.unique(glyphs["label"][use])]
    pick = np.array(
        [b[rng.integers(len(b))] for b in (by_class[k] for k in rng.integers(0, len(by_class), n))]
    )
    images = np.concatenate([render(rng, glyphs, pick[i : i + 1024]) for i in range(0, n, 1024)])
    return images, glyphs["label"][pick].astype("int32")


def load_module():
    path = ROOT / "finetune_keras" / "backbones" / "letters.py"
    spec = importlib.util.spec_from_file_location("letters", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def save(model: keras.Model, path: pathlib.Path) -> None:
    arrays = {
        f"{layer.name}/{v.name}": keras.ops.convert_to_numpy(v).astype("float16")
        for layer in model.layers
        for v in layer.variables
    }
    np.savez_compressed(path, **arrays)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--per-round", type=int, default=51200)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--decay", type=float, default=0.02)
    parser.add_argument("--out", type=pathlib.Path, default=OUT)
    args = parser.parse_args()
    start = time.time()
    keras.utils.set_random_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    glyphs = load_glyphs()
    count = len(glyphs["names"])
    print(f"{len(glyphs['sdf'])} glyphs, {count} classes, {time.time() - start:.0f} s", flush=True)
    backbone = load_module().architecture((SIZE, SIZE, 3))
    inputs = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Rescaling(1 / 127.5, -1)(inputs)
    x = keras.layers.GlobalAveragePooling2D()(backbone(x))
    x = keras.layers.Dense(count)(x)
    model = keras.Model(inputs, x)
    steps = args.rounds * args.per_round // args.batch
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, steps - 300, alpha=0.003, warmup_target=args.rate, warmup_steps=300
    )
    model.compile(
        keras.optimizers.AdamW(rate, weight_decay=args.decay),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    for i in range(args.rounds):
        images, labels = dataset(rng, glyphs, args.per_round)
        log = model.fit(images, labels, batch_size=args.batch, verbose=0).history
        print(
            f"round {i + 1}: loss {log['loss'][0]:.3f} accuracy {log['accuracy'][0]:.4f} "
            f"({time.time() - start:.0f} s)",
            flush=True,
        )
    rng = np.random.default_rng(args.seed + 10_000)
    for held, text in ((False, "fonts seen, fresh drawings"), (True, "fonts never seen")):
        images, labels = dataset(rng, glyphs, 20_000, held)
        _, accuracy = model.evaluate(images, labels, batch_size=500, verbose=0)
        print(f"{text}: accuracy {accuracy:.4f}")
    save(backbone, args.out)
    print(
        f"{args.out}: {args.out.stat().st_size} bytes, {backbone.count_params()} parameters, {time.time() - start:.0f} s"
    )


if __name__ == "__main__":
    main()
