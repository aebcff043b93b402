"""The programs in examples/ run as their first lines say, offline."""

import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name, *arguments, cwd):
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet50_frozen.py", "predictions of the loaded model are equal to the bit: True"),
        ("h5_first_layers_frozen.py", "first 10 layers as in the file, to the bit: True"),
        ("existing_pipeline.py", "they are the thawed ones and the head's: True"),
        ("side_by_side.py", "3 of 3            3 of 3"),
    ],
)
def test_examples_run_and_hold_what_they_say(name, said, tmp_path):
    out = run(name, cwd=tmp_path)
    assert said in out


def test_resnet50_takes_small_images_of_the_users_own_as_they_are(tmp_path):
    rng = np.random.default_rng(0)
    y = np.arange(24) % 2
    x = np.clip(rng.normal(60 + 120 * y[:, None, None, None], 20, (24, 32, 32, 3)), 0, 255)
    x, names = x.astype("uint8"), np.array(["night", "noon"])
    np.savez(tmp_path / "own.npz", x_train=x, y_train=y, x_test=x, y_test=y, class_names=names)
    flags = ["--data", "own.npz", "--size", "48", "--batch-size", "8"]
    out = run("resnet50_cifar10.py", *flags, cwd=tmp_path)
    assert "before training: nothing found in 24 examples" in out
    assert "they are: night, noon, night, noon, night" in out
    right = float(re.search(r"test images: ([\d.]+)% right", out)[1])
    # What random features separate in so few steps depends on the draw, which differs by backend.
    assert right > 90 or keras.backend.backend() != "tensorflow"


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="takes JAX many minutes on a CPU")
def test_resnet18_learns_from_nothing_and_says_how_well_each_class(tmp_path):
    flags = ["--images", "160", "--batch-size", "16", "--epochs", "5"]
    out = run("resnet18_cifar10.py", *flags, cwd=tmp_path)
    assert float(re.search(r"held-out images: ([\d.]+)% right", out)[1]) > 40
    assert len(re.findall(r"^ +\w+ +[\d.]+%  of 20$", out, re.MULTILINE)) == 10


def test_bert_moves_whole_at_a_small_rate_and_learns_at_a_large_one(tmp_path):
    rows = [f"{a}\tit is {b} {c}" for c in "abcdefgh" for a, b in (("no", "bad"), ("yes", "good"))]
    (tmp_path / "own.tsv").write_text("\n".join(rows * 4) + "\n")
    out = run("bert_strings.py", "--epochs", "1", cwd=tmp_path)
    assert "all 41 of 41 variables moved: True" in out
    flags = ["--data", "own.tsv", "--pooling", "mean", "--epochs", "4", "--batch-size", "4"]
    out = run("bert_strings.py", *flags, "--learning-rate", "3e-3", cwd=tmp_path)
    assert "held out: 100.0% right" in out
    assert re.search(r"^yes 0\.\d+  it is good", out, re.MULTILINE)


def test_the_quickstart_takes_the_users_own_folder(tmp_path):
    rng = np.random.default_rng(0)
    for k, folder in enumerate(("daisies", "tulips")):
        (tmp_path / "photos" / folder).mkdir(parents=True)
        for i in range(10):
            image = np.clip(rng.normal(60 + 120 * k, 20, (24, 24, 3)), 0, 255)
            keras.utils.save_img(tmp_path / "photos" / folder / f"{i}.png", image)
    flags = ["--data", "photos", "--size", "24", "--epochs", "1", "--out", "out"]
    out = run("quickstart.py", "--backbone", "letters_resnet", *flags, cwd=tmp_path)
    assert "held-out accuracy" in out
    assert "daisies, tulips" in out
    assert (tmp_path / "out" / "predictions.png").stat().st_size > 1000
    assert (tmp_path / "out" / "model.keras").exists()
