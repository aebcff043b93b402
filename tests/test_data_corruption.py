"""Random corruptions of valid files: never a crash, a hang, or a silently wrong label."""

import csv
import io
import warnings

import numpy as np
import pytest
from PIL import Image

import finetune_keras as ftk
from finetune_keras.data import tables

tf = pytest.importorskip("tensorflow")

SIZE = 24
FORMATS = ("jpg", "png", "gif", "bmp", "webp", "tif")


def corrupted(data: bytes, rng: np.random.Generator) -> bytes:
    """One of the things that happen to files: bits flip, blocks vanish, repeat or swap, ends go."""
    data = bytearray(data)
    n = len(data)
    at, length = int(rng.integers(n)), int(rng.integers(1, max(2, n // 4)))
    kind = rng.integers(7)
    if kind == 0:
        for i in rng.integers(0, n, int(rng.integers(1, 20))):
            data[i] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        data = data[: at + 1]
    elif kind == 2:
        del data[at : at + length]
    elif kind == 3:
        data[at:at] = data[:length]
    elif kind == 4:
        data[at : at + length] = bytes(len(data[at : at + length]))
    elif kind == 5:  # a header that lies
        for i in rng.integers(0, min(n, 64), 4):
            data[i] = int(rng.integers(256))
    else:
        data[at : at + length] = rng.bytes(length)
    return bytes(data)


def images_round(tmp_path, count, seed):
    """``count`` corrupted images beside sound ones: what comes out has the label of its folder.

    Sound images are red in one class and blue in the other, so that a sound image with a wrong
    label is seen.
    """
    rng = np.random.default_rng(seed)
    sound = {}
    for name, colour in (("red", (255, 0, 0)), ("sky", (0, 0, 255))):
        (tmp_path / name).mkdir(parents=True)
        for ending in FORMATS:
            path = tmp_path / name / f"sound.{ending}"
            Image.new("RGB", (SIZE, SIZE), colour).save(path)
            sound[name, ending] = path.read_bytes()
    for i in range(count):
        name, ending = ("red", "sky")[i % 2], FORMATS[i // 2 % len(FORMATS)]
        # Half of them are noise, which takes more bytes of pixels than of headers.
        source = sound[name, ending]
        if i % 4 > 1:
            file = io.BytesIO()
            pixels = rng.integers(0, 255, (SIZE, SIZE, 3), dtype="uint8")
            made = {"jpg": "JPEG", "tif": "TIFF"}.get(ending, ending.upper())
            Image.fromarray(pixels).save(file, made)
            source = file.getvalue()
        (tmp_path / name / f"{i:05}.{ending}").write_bytes(corrupted(source, rng))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = ftk.data.images(tmp_path, size=SIZE, batch_size=16, seed=seed)
        folders = [p.split("/")[-2] for p in ds.file_paths]
        assert [ds.class_names[y] for y in ds.labels] == folders
        epoch = np.concatenate([y.numpy() for _, y in ds])
        on_the_way = list(ds.skipped)
        ordered = ds.in_order()
        x, y = zip(*((a.numpy(), b.numpy()) for a, b in ordered), strict=True)
    x, y = np.concatenate(x), np.concatenate(y)
    assert x.shape == (len(ordered.labels), SIZE, SIZE, 3)
    assert np.isfinite(x).all()
    assert x.min() >= 0
    assert x.max() <= 255
    # Row by row the label is that of the file that was read, whatever was skipped before it.
    read = ordered.file_paths
    assert set(read) == set(ds.file_paths) - set(ordered.skipped)
    assert y.tolist() == ordered.labels.tolist()
    assert y.tolist() == [ds.class_names.index(p.split("/")[-2]) for p in read]
    certain = [i for i, p in enumerate(read) if "sound." in p]
    assert len(certain) == 2 * len(FORMATS)
    for i in certain:
        red, blue = x[i, ..., 0].mean(), x[i, ..., 2].mean()
        assert (red > 200) == (read[i].split("/")[-2] == "red")
        assert (blue > 200) == (read[i].split("/")[-2] == "sky")
    # An epoch skipped the same on its way, and has as many examples as ever.
    assert set(on_the_way) == set(ordered.skipped)
    assert len(epoch) == len(ds.labels)
    assert sorted(epoch[: len(read)].tolist()) == sorted(ordered.labels.tolist())
    return set(ordered.skipped), len(ds.labels)


def test_corrupted_images(tmp_path):
    skipped, kept = images_round(tmp_path, 240, seed=0)
    assert 20 < len(skipped) < 240
    assert kept > 40
    scan = ftk.data.scan(tmp_path)
    assert set(scan.paths("unreadable", "truncated")) >= skipped


def test_corrupted_tables(tmp_path):
    tables_round(tmp_path, 60, seed=1)


@pytest.mark.slow
def test_many_corrupted_images(tmp_path):
    for seed in range(16):
        images_round(tmp_path / str(seed), 500, seed=100 + seed)


@pytest.mark.slow
def test_many_corrupted_tables(tmp_path):
    tables_round(tmp_path, 2000, seed=2)


def tables_round(tmp_path, count, seed):
    """``count`` corrupted tables: one clear line, or the labels that the file says."""
    rng = np.random.default_rng(seed)
    names = ["cat", "dog", "ünïcode", "a, b"]
    rows = [(f"{i}.png", names[i % 4]) for i in range(12)]
    for i, _ in enumerate(rows):
        Image.new("RGB", (4, 4), (20 * i, 0, 0)).save(tmp_path / f"{i}.png")
    file = io.StringIO()
    csv.writer(file).writerows([("path", "label"), *rows])
    refused: list[str] = []
    for i in range(count):
        path = tmp_path / "corrupted.csv"
        path.write_bytes(corrupted(file.getvalue().encode(), rng))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                files, labels, _ = tables.listed(path, class_names=names)
                # Tracing a data set takes longer than all the rest: only some are read.
                ds = ()
                if i % 20 == 0:
                    ds = ftk.data.table(path, size=4, shuffle=False, class_names=names)
        except ValueError as e:
            refused.append(str(e))
            continue
        said = {tuple(f.strip() for f in row[:2]) for row in told(path)}
        made = {(p.split("/")[-1], names[y]) for p, y in zip(files, labels)}  # noqa: B905
        assert made <= said
        for x, y in ds:
            for pixel, label in zip(x.numpy(), y.numpy(), strict=True):
                assert (f"{round(pixel[0, 0, 0] / 20)}.png", names[label]) in said
    assert count / 4 < len(refused) < count
    assert not any("\n" in message for message in refused)


def told(path):
    """The pairs of a table, by the csv module alone."""
    text = path.read_bytes().decode("utf-8-sig")
    header, *body = csv.reader(io.StringIO(text, newline=""))
    at = [[f.strip() for f in header].index(name) for name in ("path", "label")]
    return [[row[i] for i in at] for row in body if len(row) == len(header)]
