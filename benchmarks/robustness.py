"""Kills runs of `finetune_keras.fine_tune` at random moments, and counts what gets lost.

    python benchmarks/robustness.py --kills 100 --out robustness.jsonl

A run in a process of its own, with a folder, is killed by SIGKILL and started again until it ends,
and its weights, History and best epoch are compared to the bit with those of a run that nobody
killed. Half of the kills come at a random time, from the first second on; the others strike in the
middle of storing: at a random one of the points where a file is written, flushed or renamed.
Recipes, kinds of data and heads take turns: arrays and image files, with validation data of their
own, or with a fifth held out, which a refit learns from in the end; a head that is solved, and one
with a hidden layer and dropout, which is trained. A line of JSON for each run. On JAX what was
compiled by one process is kept for the next ones, else they would do little else.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECIPES = ("lp_ft", "auto", "gradual", "full", "surgical", "linear_probe")
DATA = ("arrays, refit", "files", "arrays", "files, refit")
HEADS = {"trained": {"hidden": (16,), "dropout": 0.3}, "solved": {}}


def worker(args: argparse.Namespace) -> None:
    """One process: trains, and writes a digest of what came out."""
    import keras
    import numpy as np

    import finetune_keras as ftk
    from finetune_keras import heads

    if args.strike:
        _strike(args.strike)
    keras.utils.set_random_seed(1)
    base = ftk.backbone("letters_resnet", input_shape=(24, 24, 3))
    head = heads.Classification(3, **HEADS[args.head])
    model = ftk.build(base, head, augment=keras.layers.RandomTranslation(0.1, 0.1))
    if (args.directory / "start.npz").exists():  # as a program that draws its head anew
        kernel = model.layers[-1].kernel
        kernel.assign(np.random.default_rng().normal(size=kernel.shape))
    if args.data.startswith("arrays"):
        rng = np.random.default_rng(0)
        y = np.arange(150) % 3
        x = rng.uniform(0, 128, (150, 24, 24, 3)) + 40.0 * y[:, None, None, None]
        train, held = (x[:120], y[:120]), (x[120:], y[120:])
        every = x, y
    else:
        every = ftk.data.images(args.files, size=(24, 24), batch_size=16, seed=3)
        train, held = every.split(0.2, seed=3)
    if args.data.endswith("refit"):
        train, held = every, None
    history = ftk.fine_tune(
        model,
        train,
        validation_data=held,
        recipe=args.recipe,
        epochs=8,
        patience=8,
        seed=5,
        directory=args.directory,
        verbose=0,
    )
    hashed = hashlib.sha256()
    for value in model.get_weights():
        hashed.update(np.ascontiguousarray(value).tobytes())
    told = {
        "weights": hashed.hexdigest(),
        "history": json.dumps(history.history),
        "best": str(history.best),
    }
    args.result.write_text(json.dumps(told))


def _strike(at: int) -> None:
    """Ends the process at one of the points where files are written."""
    import numpy as np

    left = [at]

    def dying(usual):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            found = usual(*args, **kwargs)
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        return call

    os.fsync, os.replace = dying(os.fsync), dying(os.replace)
    usual = np.lib.format.write_array  # between two arrays of a file
    np.lib.format.write_array = dying(usual)


def start(place: Path, kind: tuple, files: Path, strike: int = 0) -> subprocess.Popen:
    """A process of a run."""
    recipe, data, head = kind
    command = [sys.executable, __file__, "--worker", "--recipe", recipe, "--data", data]
    command += ["--head", head]
    command += ["--directory", str(place / "run"), "--result", str(place / "result.json")]
    command += ["--files", str(files), "--strike", str(strike)]
    env = {
        "JAX_COMPILATION_CACHE_DIR": str(place.with_name("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    with open(place / "log", "a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | env)


def pictures(folder: Path) -> None:
    """Files of three colours."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for name, colour in (("a", 30), ("b", 90), ("c", 150)):
        (folder / name).mkdir(parents=True)
        for i in range(40):
            pixels = colour + rng.integers(0, 100, (28, 28, 3))
            Image.fromarray(pixels.astype("uint8")).save(folder / name / f"{i}.png")


def main() -> None:
    """Kills until enough were killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("robustness.jsonl"))
    parser.add_argument("--worker", action="store_true")
    parser.add_argument("--recipe", default="")
    parser.add_argument("--data", default="")
    parser.add_argument("--head", default="")
    parser.add_argument("--files", type=Path)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--result", type=Path)
    parser.add_argument("--strike", type=int, default=0)
    args = parser.parse_args()
    if args.worker:
        worker(args)
        return
    rng = random.Random(args.seed)
    killed = runs = bad = striking = 0
    with tempfile.TemporaryDirectory() as temporary, open(args.out, "w") as out:
        root = Path(temporary)
        pictures(root / "files")
        whole: dict[tuple, tuple[dict, float]] = {}
        while killed < args.kills:
            turn, round_ = runs // len(RECIPES), runs // len(RECIPES) // len(DATA)
            head = list(HEADS)[(runs + turn + round_) % len(HEADS)]
            kind = RECIPES[runs % len(RECIPES)], DATA[turn % len(DATA)], head
            if kind not in whole:
                place = root / f"whole-{'-'.join(kind)}"
                place.mkdir()
                begun = time.perf_counter()
                if start(place, kind, root / "files").wait():
                    sys.exit((place / "log").read_text()[-3000:])
                took = time.perf_counter() - begun
                whole[kind] = json.loads((place / "result.json").read_text()), took
            wanted, took = whole[kind]
            place = root / f"run{runs}"
            place.mkdir()
            at = []
            while True:
                many = len(at) >= 6  # a run has an end
                strike = 0 if many or rng.random() < 0.5 else rng.randint(1, 400)
                process = start(place, kind, root / "files", strike)
                limit = None if many or strike else rng.uniform(1.0, 1.1 * took)
                try:
                    code = process.wait(limit)
                except subprocess.TimeoutExpired:
                    process.kill()
                    code = process.wait()
                if code == 0:
                    break
                if code != -signal.SIGKILL:
                    break  # an error of its own
                at.append("storing" if strike else round(limit, 1))
            killed, runs, striking = killed + len(at), runs + 1, striking + at.count("storing")
            found = None
            if (place / "result.json").exists():
                found = json.loads((place / "result.json").read_text())
            equal = found == wanted
            bad += not equal
            line = dict(zip(("recipe", "data", "head"), kind, strict=True))
            line |= {"killed": at, "equal": equal}
            if not equal:
                line["differs"] = [k for k in wanted if found is None or found[k] != wanted[k]]
                line["log"] = (place / "log").read_text()[-2000:]
            out.write(json.dumps(line) + "\n")
            out.flush()
    print(f"{runs} runs, killed {killed} times, of these {striking} while storing: {bad} different")


if __name__ == "__main__":
    main()
