"""`ftk.fine_tune` as it comes, against what people do instead, on real images and real weights.

    python benchmarks/fine_tune.py --data DATA --out runs.jsonl [--peers PYTHON]
    python benchmarks/fine_tune.py --out runs.jsonl --table

The network is MobileNetV2 of width 0.35 with weights of ImageNet. ``flowers`` are photographs of
five kinds, at 96 pixels, near to ImageNet; ``digits`` are handwritten, from scikit-learn, drawn
large to 64 pixels, and far from it. So many images of each class are drawn by each seed (0: all
there are). Accuracy is on images that nothing was chosen by: ``flowers5/val``, and the last 597
digits.

======== =========================================================================================
brief    `ftk.fine_tune` with ``refit=False``: what a fifth of the images chose is left as it is
frozen   a new head on the frozen network, Adam at 1e-3
all      everything at 1e-5
guide    the two steps of Keras' guide to transfer learning: half of the epochs as ``frozen``, then
         everything at 1e-5, the network called with ``training=False`` (which ``fit`` overrides in
         Keras 3.15, so that batch normalisation trains: keras-team/keras#20285)
meant    the same as it is meant: batch normalisation by its moving statistics
fastai   ``vision_learner(...).fine_tune``, its head, its rates
torch    everything by SGD as in PyTorch's tutorial: 1e-3, a tenth of it every seven epochs
======== =========================================================================================

Each gets all the images, in batches of the size that ``fine_tune`` chooses. None augments. Two
comparisons: after as many epochs as ``fine_tune`` takes at most, 30 here, and after as many CPU
seconds as it took until it ended by itself, to the last epoch that ends in them. ``guide`` and
``meant`` go over to their second step after 15 epochs; fastai, whose rate goes by the number of
epochs, runs once more with as many as the time allows. A row has the accuracy and both clocks
after each epoch. Times are without reading, building and testing, and with compilation. CPU seconds
are those of all threads, which other programs on the machine do not lengthen as they do wall
seconds; fastai and PyTorch have one, as more would take as long and wait busily.

Runs that are in the file are not repeated, unless a later one of ``fine_tune`` took longer. The
most telling come first, and all ways of a seed before the next seed. PYTHON has torch, torchvision
and fastai; the weights are copied to it.
"""

from __future__ import annotations

import argparse
import collections
import functools
import itertools
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from peers import TUNED

import finetune_keras as ftk
from finetune_keras import heads

SETS = {"flowers": 96, "digits": 64}
OURS, PEERS = ("fine_tune", "brief"), ("fastai", "torch")
FIRST, THEN = (*OURS, "guide", "meant", "frozen"), ("all", *PEERS)
_LONG = 10_000  # epochs
WAYS = (*FIRST, *THEN)


class Clock(keras.callbacks.Callback):
    """Runs while a model trains, and scores it after each epoch, so many and so long."""

    def __init__(self, test: tuple, epochs: int, cpu: float):
        super().__init__()
        self.test, self.epochs, self.cpu = test, epochs, cpu
        self.track: list[list[float]] = []  # accuracy, CPU and wall seconds
        self._spent = [0.0, 0.0]
        self._last = 0.0
        self.go()

    def go(self) -> None:
        """Goes on."""
        self._since = time.process_time(), time.perf_counter()

    def stop(self) -> None:
        """Pauses."""
        now = time.process_time(), time.perf_counter()
        self._spent = [s + b - a for s, a, b in zip(self._spent, self._since, now, strict=True)]

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Scores, and ends where the next epoch would be too much."""
        self.stop()
        self.score()
        last, self._last = self._spent[0] - self._last, self._spent[0]
        late = self._spent[0] + last > self.cpu
        self.model.stop_training = self.over = late and len(self.track) >= self.epochs
        self.go()

    def score(self) -> None:
        """Notes what the model is worth by now."""
        right = self.model.predict(self.test[0], batch_size=64, verbose=0).argmax(-1)
        accuracy = float((right == self.test[1]).mean())
        self.track.append([round(accuracy, 4), *(round(s, 2) for s in self._spent)])


def network(data: Path, size: int) -> keras.Model:
    """What was pretrained, without its top."""
    made = keras.applications.MobileNetV2((size, size, 3), 0.35, include_top=False, weights=None)
    made.load_weights(next((data / "weights" / "mobilenet_v2_0.35").glob("*.weights.h5")))
    return made


def by_fine_tune(base: keras.Model, train: tuple, clock: Clock, seed: int, refit: bool) -> dict:
    """One call."""
    classes = int(max(train[1])) + 1
    base = ftk.backbone(base, preprocessing="mobilenetv2")
    model = ftk.build(base, heads.Classification(classes))
    clock.go()
    history = ftk.fine_tune(model, train, seed=seed, refit=refit, verbose=0)
    clock.stop()
    clock.set_model(model)
    clock.score()
    best, scores = history.best, history.history[history.best.monitor]
    return {
        "most": history.plan.epochs,
        "epochs": len(history.epoch),
        "phase": best.phase,
        "epoch": best.epoch,
        "refit": history.refit,
        "validation": [round(float(v), 3) for v in scores],
        "notes": history.notes,
    }


class Inference(keras.layers.Layer):
    """A network that is always called as in inference; what is inside of a layer of one's own,
    ``fit`` does not override.
    """

    def __init__(self, network: keras.Model):
        super().__init__()
        self.network = network

    def call(self, x):
        return self.network(x, training=False)

    def compute_output_shape(self, shape):
        return self.network.compute_output_shape(shape)


def by_steps(base: keras.Model, train: tuple, clock: Clock, batch: int, steps: list) -> None:
    """Plain Keras: in each step the network learns or not, at a rate, for some epochs."""
    x = inputs = keras.Input(train[0].shape[1:])
    x = base(keras.layers.Rescaling(1 / 127.5, -1)(x), training=False)
    x = keras.layers.Dropout(0.2)(keras.layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, keras.layers.Dense(int(max(train[1])) + 1)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    clock.go()
    for learns, rate, epochs in steps:
        base.trainable = learns
        model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
        model.fit(*train, batch_size=batch, epochs=epochs, callbacks=[clock], verbose=0)
        if clock.over:
            return


def steps(way: str, epochs: int) -> list[tuple[bool, float, int]]:
    """For `by_steps`; the clock ends the last one."""
    if way in ("guide", "meant"):
        return [(False, 1e-3, epochs // 2), (True, 1e-5, _LONG)]
    return [(False, 1e-3, _LONG) if way == "frozen" else (True, 1e-5, _LONG)]


def images(data: Path, name: str) -> tuple[tuple, tuple]:
    """All that can be drawn, and what is tested on; floats from 0 to 255."""
    size = SETS[name]
    if name == "digits":
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        x = keras.ops.image.resize(x.reshape(-1, 8, 8, 1) * (255 / 16), (size, size))
        x = np.repeat(np.asarray(x, "float32"), 3, axis=-1)
        return (x[:1200], y[:1200]), (x[1200:], y[1200:])
    parts = []
    for part in ("train", "val"):
        found = keras.utils.image_dataset_from_directory(
            data / "flowers5" / part, image_size=(size, size), shuffle=False, verbose=False
        )
        parts.append(tuple(np.concatenate(v) for v in zip(*found.as_numpy_iterator(), strict=True)))
    return tuple(parts)


def drawn(y: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Rows, so many of each class (0: all), in any order."""
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(np.flatnonzero(y == c)) for c in np.unique(y)]
    return rng.permutation(np.concatenate([r[: count or None] for r in rows]))


def batch_size(count: int) -> int:
    """As `ftk.fine_tune` chooses it."""
    size, learned = 32, count - round(0.2 * count)
    while size > 8 and learned < 8 * size:
        size //= 2
    return size


class Runs:
    """All runs, those of the file among them."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.rows = args, {}
        if args.out.exists():
            for line in args.out.read_text().splitlines():
                row = json.loads(line)
                self.rows[row["set"], row["images"], row["seed"], row["way"]] = row
        self.images = functools.cache(functools.partial(images, args.data))
        self._peer = self._folder = None

    def wanted(self) -> list[tuple]:
        """What to run, in this order."""
        parts, few = [], [n for n in self.args.images if n]
        for ways, counts in itertools.product((FIRST, THEN), (few, [0])):
            counts = [n for n in counts if n in self.args.images]
            found = itertools.product(range(self.args.seeds), counts, self.args.sets, ways)
            parts += [(name, n, seed, way) for seed, n, name, way in found]
        ways = [w for w in self.args.ways if w not in PEERS or self.args.peers]
        return [p for p in parts if p[-1] in ways and (p not in self.rows or self.short(p))]

    def short(self, part: tuple) -> bool:
        """Whether another run of ``fine_tune`` took so long that this one could have gone on."""
        mine, row = self.rows.get((*part[:-1], "fine_tune")), self.rows[part]
        if part[-1] in OURS or "in time" in row or mine is None:
            return False
        (_, before, _), (_, last, _) = row["track"][-2:]
        return last + 1.1 * (last - before) < mine["track"][-1][1]

    def run(self) -> None:
        """Runs what is missing."""
        for name, n, seed, way in self.wanted():
            row = {"set": name, "images": n, "seed": seed, "way": way}
            epochs, cpu = 0, 0.0
            if way not in OURS:
                mine = self.rows[name, n, seed, "fine_tune"]
                epochs, cpu = mine["most"], mine["track"][-1][1]
            run = self.peer if way in PEERS else self.keras
            row |= run(name, n, seed, way, epochs, cpu)
            self.rows[name, n, seed, way] = row
            with self.args.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
        if self._peer is not None:
            self._peer.stdin.close()
            self._peer.wait()
            self._folder.cleanup()

    def keras(self, name: str, n: int, seed: int, way: str, epochs: int, cpu: float) -> dict:
        """One run here."""
        (x, y), test = self.images(name)
        rows = drawn(y, n, seed)
        train = x[rows], y[rows]
        keras.backend.clear_session()
        keras.utils.set_random_seed(seed)
        base = network(self.args.data, SETS[name])
        clock = Clock(test, epochs, cpu)
        if way in OURS:
            refit = way == "fine_tune"
            return {**by_fine_tune(base, train, clock, seed, refit), "track": clock.track}
        base = Inference(base) if way == "meant" else base
        by_steps(base, train, clock, batch_size(len(rows)), steps(way, epochs))
        return {"track": clock.track}

    def peer(self, name: str, n: int, seed: int, way: str, epochs: int, cpu: float) -> dict:
        """One run by another interpreter, which lives as long as this one."""
        if self._peer is None:
            self._folder = tempfile.TemporaryDirectory()
            for each in self.args.sets:
                self._write(each)
            script = Path(__file__).with_name("fine_tune_peers.py")
            self._peer = subprocess.Popen(
                [self.args.peers, script, self._folder.name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | TUNED,
            )
        rows = drawn(self.images(name)[0][1], n, seed)
        job = {"way": way, "set": name, "rows": rows.tolist(), "seed": seed}
        job |= {"batch": batch_size(len(rows)), "epochs": epochs, "cpu": cpu}
        self._peer.stdin.write(json.dumps(job) + "\n")
        self._peer.stdin.flush()
        answer = self._peer.stdout.readline()
        if not answer:
            raise SystemExit(f"{self._peer.args[1]} stopped at {way} of {name}; it says why above")
        return json.loads(answer)

    def _write(self, name: str) -> None:
        """Images as the network takes them, its weights in order, and what it should give."""
        model = network(self.args.data, SETS[name])
        (x, y), (x_test, y_test) = ((x / 127.5 - 1, y) for x, y in self.images(name))
        kept = [v.numpy() for layer in model.layers for v in layer.weights]
        arrays = {f"weight_{i:04}": v for i, v in enumerate(kept)}
        arrays |= {"x": x, "y": y, "x_test": x_test, "y_test": y_test}
        arrays["features"] = model.predict(x[:2], verbose=0).mean((1, 2))
        np.savez(Path(self._folder.name) / f"{name}.npz", **arrays)


def table(rows: list[dict]) -> str:
    """Tables in Markdown: accuracies in percent, with the number of seeds where it is not that of
    ``fine_tune``, and times relative to those of ``guide``.
    """
    found = collections.defaultdict(dict)
    for row in rows:
        found[row["set"], row["images"], row["way"]][row["seed"]] = row
    cells = [c for c in itertools.product(SETS, (5, 20, 0)) if found[*c, "fine_tune"]]

    def after(cell: tuple, way: str, seed: int, mark: str) -> list[float]:
        """Accuracy and both clocks."""
        mine, row = found[*cell, "fine_tune"][seed], found[*cell, way][seed]
        if way in OURS:
            return row["track"][-1]
        if mark == "epochs":
            return row["track"][mine["most"] - 1]
        limit = mine["track"][-1][1]
        return [
            r for i, r in enumerate(row.get("in time", row["track"])) if not i or r[1] <= limit
        ][-1]

    def accuracy(cell: tuple, way: str, mark: str) -> str:
        values = [100 * after(cell, way, seed, mark)[0] for seed in found[*cell, way]]
        if not values:
            return ""
        error = ""
        if len(values) > 1:
            error = f" ± {statistics.stdev(values) / len(values) ** 0.5:.1f}"
        many = len(found[*cell, "fine_tune"])
        seeds = "" if len(values) == many else f" ({len(values)})"
        return f"{statistics.mean(values):.1f}{error}{seeds}"

    def ratio(cell: tuple, way: str, kind: str) -> str:
        seeds, at = found[*cell, way].keys() & found[*cell, "guide"].keys(), 1 + (kind == "wall")
        values = [
            after(cell, way, s, "epochs")[at] / after(cell, "guide", s, "epochs")[at] for s in seeds
        ]
        return f"{statistics.median(values):.2f}" if values else ""

    heads = [f"`{w}`" if w == "fine_tune" else w for w in WAYS]
    titles = {
        "epochs": "Accuracy in percent after 30 epochs, of `fine_tune` and brief when they ended",
        "time": "After the same CPU time",
        "wall": "Wall seconds, relative to those of guide after 30 epochs",
        "cpu": "CPU seconds likewise",
    }
    lines = []
    for key, title in titles.items():
        lines += [
            f"{title}:",
            "",
            line(["images a class", *heads]),
            line(["---"] * (1 + len(WAYS))),
        ]
        show = accuracy if key in ("epochs", "time") else ratio
        for cell in cells:
            name = f"{cell[0]}, {cell[1] or 'all'} ({len(found[*cell, 'fine_tune'])} seeds)"
            lines.append(line([name, *(show(cell, way, key) for way in WAYS)]))
        lines.append("")
    return "\n".join(lines)


def line(cells: list[str]) -> str:
    """A row of a table in Markdown."""
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--peers", help="an interpreter with torch, torchvision and fastai")
    parser.add_argument("--sets", nargs="*", choices=SETS, default=list(SETS))
    parser.add_argument("--images", type=int, nargs="*", default=[20, 5, 0], help="of each class")
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--table", action="store_true", help="shows the file; runs nothing")
    args = parser.parse_args()
    runs = Runs(args)
    if args.table:
        print(table(list(runs.rows.values())))
        return
    if args.data is None:
        parser.error("a run needs --data")
    runs.run()


if __name__ == "__main__":
    main()
