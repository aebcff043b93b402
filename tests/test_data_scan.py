"""What `scan` finds, and that training skips just that."""

import json
import warnings

import numpy as np
import pytest
from PIL import Image

import finetune_keras as ftk

pytest.importorskip("tensorflow")


def noise(seed, size=64):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (size, size, 3), dtype="uint8"))


@pytest.fixture
def folder(tmp_path):
    seed = 0
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(3):
                noise(seed).save(tmp_path / split / name / f"{i}.jpg")
                seed += 1
    return tmp_path


def found(folder, **options):
    return [(p.kind, p.path) for p in ftk.data.scan(folder, **options)]


def test_a_sound_folder_has_no_problem(folder):
    scan = ftk.data.scan(folder)
    assert not scan
    assert scan.files == 12
    assert "12 images, no problems" in str(scan)


def test_every_kind_is_found_with_its_path(folder):
    cat, dog = folder / "train" / "cat", folder / "train" / "dog"
    (cat / "a.jpg").write_bytes(b"no image")
    (cat / "b.jpg").write_bytes(b"")
    whole = (cat / "0.jpg").read_bytes()
    (cat / "c.jpg").write_bytes(whole[: len(whole) // 2])
    noise(50).save(cat / "d.png")
    png = (cat / "d.png").read_bytes()
    (cat / "d.png").write_bytes(png[:-200])
    broken = bytearray(png)
    broken[200:400] = bytes(200)
    (cat / "e.png").write_bytes(bytes(broken))
    (dog / "copy.jpg").write_bytes((dog / "0.jpg").read_bytes())
    (dog / "other.jpg").write_bytes((cat / "1.jpg").read_bytes())
    (folder / "val" / "cat" / "leak.jpg").write_bytes((cat / "2.jpg").read_bytes())
    noise(60).save(dog / "really.jpg", "PNG")
    noise(61, size=9).save(dog / "small.png")
    (dog / "phone.heic").write_bytes(b"x")
    scan = ftk.data.scan(folder)
    assert [(p.kind, p.path) for p in scan] == [
        ("unreadable", "train/cat/a.jpg"),
        ("unreadable", "train/cat/b.jpg"),
        ("unreadable", "train/cat/e.png"),
        ("truncated", "train/cat/c.jpg"),
        ("truncated", "train/cat/d.png"),
        ("leaked", "val/cat/leak.jpg"),
        ("duplicate", "train/dog/copy.jpg"),
        ("duplicate", "train/dog/other.jpg"),
        ("extension", "train/dog/really.jpg"),
        ("tiny", "train/dog/small.png"),
        ("ignored", "train/dog/phone.heic"),
    ]
    why = {p.path: p.why for p in scan}
    assert why["train/cat/b.jpg"] == "it is empty"
    assert why["train/dog/copy.jpg"] == "the same bytes as 'train/dog/0.jpg'"
    assert why["train/dog/other.jpg"] == "the same bytes as 'train/cat/1.jpg', in another class"
    assert why["val/cat/leak.jpg"] == "the same bytes as 'train/cat/2.jpg'"
    assert why["train/dog/really.jpg"] == "it ends in .jpg, and is PNG"
    assert why["train/dog/small.png"] == "9 x 9 pixels"
    assert all("\n" not in p.why for p in scan)
    told = json.loads(json.dumps(scan.to_dict()))
    assert told["files"] == 22
    assert told["counts"]["truncated"] == 2
    assert told["problems"][5]["other"] == "train/cat/2.jpg"
    for p in scan:
        assert p.path in str(scan)
        assert p.why in str(scan)
    # Training skips just what cannot be decoded.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = ftk.data.images(folder, size=16, split="train")
        for _ in ds:
            pass
    assert sorted(ds.skipped) == sorted(scan.paths("unreadable", "truncated"))
    for path in scan.paths():
        assert str(folder) in path


def test_tiny_is_what_you_say(folder):
    assert found(folder, tiny=64) == []
    assert len(found(folder, tiny=65)) == 12


def test_every_cut_of_a_file_is_truncated_or_unreadable(tmp_path):
    for ending, options in (("jpg", {}), ("png", {}), ("webp", {}), ("gif", {}), ("bmp", {})):
        path = tmp_path / f"whole.{ending}"
        noise(1).save(path, **options)
        data = path.read_bytes()
        assert found(tmp_path) == []
        for i, length in enumerate(np.linspace(1, len(data) - 3, 6).astype(int)):
            (tmp_path / f"cut{i}.{ending}").write_bytes(data[:length])
        kinds = [kind for kind, _ in found(tmp_path)]
        assert len(kinds) == 6
        assert set(kinds) <= {"truncated", "unreadable"}, ending
        assert kinds.count("truncated") >= 4, ending
        for file in tmp_path.iterdir():
            file.unlink()


def test_a_folder_without_classes_and_one_file(tmp_path):
    noise(1).save(tmp_path / "1.jpg")
    assert not ftk.data.scan(tmp_path)
    with pytest.raises(ValueError, match="is a file; give the folder"):
        ftk.data.scan(tmp_path / "1.jpg")
    with pytest.raises(ValueError, match="there is no folder"):
        ftk.data.scan(tmp_path / "none")
    with pytest.raises(ValueError, match="no kind 'leak': did you mean 'leaked'"):
        ftk.data.scan(tmp_path).of("leak")


def test_loops_and_broken_links(tmp_path):
    (tmp_path / "a").mkdir()
    noise(1).save(tmp_path / "a" / "1.jpg")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "a" / "2.jpg").symlink_to(tmp_path / "gone.jpg")
    scan = ftk.data.scan(tmp_path)
    assert [tuple(p) for p in scan] == [("unreadable", "a/2.jpg", "it is a broken link", "")]
