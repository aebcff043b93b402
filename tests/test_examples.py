"""The programs in examples/ run as their first lines say, offline."""

import os
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
