"""Training on a frozen network with and without the cache: ``ftk.fit`` against ``model.fit``.

    python benchmarks/cached_fit.py --case resnet50 --case partial --case bert --case open
    python benchmarks/cached_fit.py --case growth
    python benchmarks/cached_fit.py --case resnet50 --engine keras --engine auto --out resnet50.json

Each repeat trains the same model both ways, in turn, and gives one ratio; medians are printed. The
data are made, in memory, with a label each. ``floor`` is what cannot be saved: the frozen part run
bare over the data once, and the epochs of the rest alone on arrays in memory; ``per_second`` is
the rate of that bare pass, and ``share_of_bare_pass`` what one epoch by the cache has of it. Both
sides are warm: each has trained one epoch on two batches before. ``cold`` is the first call in the
process, ten epochs by the cache, compilation and all. ``growth`` keeps features in files, and tells
time and the peak of resident memory by the number of examples.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

from common import resident, timed
from peers import PEERS, TUNED

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def resnet50(freeze=None):
    """ResNet50 with a hidden layer of 1024 on top."""
    import numpy as np

    import finetune_keras as ftk
    from finetune_keras import heads, select

    base = ftk.backbone("resnet50", weights=None, input_shape=(224, 224, 3))
    model = ftk.build(
        base, heads.Classification(10, hidden=[1024]), freeze=freeze or select.backbone()
    )

    def data(n):
        rng = np.random.default_rng(0)
        return rng.uniform(0, 255, (n, 224, 224, 3)).astype("float32"), np.arange(n) % 10

    return model, data


def partial():
    """The same, frozen up to the fourth stage only."""
    from finetune_keras import select

    return resnet50(select.up_to("conv4_block6_out"))


def bert():
    """A BERT of the size of MiniLM (6 layers of 384), 128 tokens."""
    import keras_hub
    import numpy as np

    import finetune_keras as ftk
    from finetune_keras import heads, select

    network = keras_hub.models.BertBackbone(
        vocabulary_size=30522,
        num_layers=6,
        num_heads=12,
        hidden_dim=384,
        intermediate_dim=1536,
        max_sequence_length=512,
    )
    base = ftk.backbone(network, cut_at="pooled_output")
    model = ftk.build(base, heads.Classification(2), freeze=select.backbone())

    def data(n):
        rng = np.random.default_rng(0)
        x = {
            "token_ids": rng.integers(0, 30522, (n, 128)).astype("int32"),
            "segment_ids": np.zeros((n, 128), "int32"),
            "padding_mask": np.ones((n, 128), "int32"),
        }
        return x, np.arange(n) % 2

    return model, data


def open_():
    """Nothing frozen: ``ftk.fit`` is ``model.fit`` then."""
    import keras
    import numpy as np

    import finetune_keras as ftk
    from finetune_keras import heads

    network = keras.applications.MobileNetV2(
        weights=None, include_top=False, alpha=0.35, input_shape=(96, 96, 3)
    )
    model = ftk.build(ftk.backbone(network), heads.Classification(10))

    def data(n):
        rng = np.random.default_rng(0)
        return rng.uniform(0, 255, (n, 96, 96, 3)).astype("float32"), np.arange(n) % 10

    return model, data


CASES = {"resnet50": resnet50, "partial": partial, "bert": bert, "open": open_}


def compare(case: str, args) -> dict:
    """Medians over repeats for one network."""
    import keras

    import finetune_keras as ftk

    keras.utils.set_random_seed(0)
    model, data = CASES[case]()
    x, y = data(args.images)
    start = model.get_weights()
    settings = {"batch_size": args.batch, "verbose": 0}
    used = args.engine or ["keras"]
    used = used[:1] if case == "open" else used

    def part(n):
        return keras.tree.map_structure(lambda a: a[:n], (x, y))

    def plain(n, epochs):
        return timed(lambda: model.fit(*part(n), epochs=epochs, **settings))

    def cached(engine, n, epochs):
        fast = {} if case == "open" else {"engine": engine}
        return timed(lambda: ftk.fit(model, *part(n), epochs=epochs, **settings, **fast))

    cold = {engine: cached(engine, args.images, args.epochs) for engine in used}
    plain(2 * args.batch, 1)
    rows = []
    for turn in range(args.repeats):
        model.set_weights(start)
        row = {}

        def without(row=row):
            row["plain"] = plain(args.images, args.epochs)
            row["plain_one"] = plain(args.images, 1)

        def with_cache(row=row):
            for engine in used:
                cached(engine, 2 * args.batch, 1)
                row[engine] = {
                    "cached": cached(engine, args.images, args.epochs),
                    "cached_one": cached(engine, args.images, 1),
                }
                if case != "open":
                    row[engine] |= floor(engine, model, x, y, args)

        if case == "resnet50" and args.peers:
            row |= {name: by_peer(name, args) for name in PEERS}
        for side in (with_cache, without) if turn % 2 else (without, with_cache):
            side()
        rows.append(row)
    result = {"case": case, "backend": keras.backend.backend(), "images": args.images}
    result |= {"epochs": args.epochs, "repeats": args.repeats}
    others = [name for name in PEERS if name in rows[0]]
    result |= {name: medians([r[name] for r in rows]) for name in ("plain", "plain_one", *others)}
    result["engines"] = {e: summary([r | r[e] for r in rows], cold[e], args) for e in used}
    return result


def by_peer(name: str, args) -> tuple[float, float]:
    """Wall and CPU seconds of all epochs by another library, in a process of its own."""
    command = [args.peers, os.path.join(os.path.dirname(__file__), "peers.py"), "--peer", name]
    for option in ("images", "batch", "epochs"):
        command += [f"--{option}", str(getattr(args, option))]
    out = subprocess.check_output(command, env={**os.environ, **TUNED}, text=True)
    told = json.loads(out.splitlines()[-1])
    return told["wall"], told["cpu"]


def medians(pairs) -> dict:
    """Of wall and CPU seconds."""
    found = (statistics.median(values) for values in zip(*pairs, strict=True))
    return {kind: round(value, 3) for kind, value in zip(("wall", "cpu"), found, strict=True)}


def summary(rows, cold, args) -> dict:
    """What one engine took, each ratio from one repeat."""
    timings = [k for k in ("cached", "cached_one", "floor", "pass") if k in rows[0]]
    result = {name: medians([r[name] for r in rows]) for name in timings}
    result["cold_wall"] = round(cold[0], 2)
    for i, kind in enumerate(("wall", "cpu")):
        ratios = {
            "faster": [r["plain"][i] / r["cached"][i] for r in rows],
            "one_epoch": [r["cached_one"][i] / r["plain_one"][i] for r in rows],
        }
        for name in PEERS:
            if name in rows[0]:
                ratios[f"faster_than_{name}"] = [r[name][i] / r["cached"][i] for r in rows]
        if "floor" in timings:
            ratios["of_floor"] = [r["cached"][i] / r["floor"][i] for r in rows]
        result[f"ratios_{kind}"] = {
            k: {"median": round(statistics.median(v), 3), "each": [round(a, 3) for a in v]}
            for k, v in ratios.items()
        }
    if "pass" in timings:
        # Of the bare pass, and what part of that rate one epoch by the cache keeps.
        bare, one = result["pass"]["wall"], result["cached_one"]["wall"]
        result["per_second"] = round(args.images / bare, 1)
        result["share_of_bare_pass"] = round(bare / one, 3)
        result["engine"] = rows[-1]["record"]
    return result


def floor(engine, model, x, y, args) -> dict:
    """What cannot be saved: one bare pass, and the epochs of the rest alone."""
    import keras
    import numpy as np

    from finetune_keras.cache import engines
    from finetune_keras.cache.split import divide

    division = divide(model)
    flat = zip(keras.tree.flatten(x), division.prefix.inputs, strict=True)
    flat = [a.astype(t.dtype, copy=False) for a, t in flat]
    batches = [[a[i : i + args.batch] for a in flat] for i in range(0, args.images, args.batch)]
    chosen = engines.choose(division.prefix, batches[0], engine)
    made = []
    once = timed(lambda: made.extend(map(chosen.run, batches)))
    arrays = [np.concatenate(a) for a in zip(*made, strict=True)]
    fed = arrays[0] if len(arrays) == 1 else arrays
    settings = {"batch_size": args.batch, "epochs": args.epochs, "verbose": 0}
    rest = timed(lambda: division.suffix.fit(fed, y, **settings))
    both = tuple(a + b for a, b in zip(once, rest, strict=True))
    return {"floor": both, "pass": once, "record": chosen.record.to_dict()}


def growth(args) -> dict:
    """One number of examples, in this process: a pass into files and two epochs."""
    import keras
    import numpy as np

    import finetune_keras as ftk
    from finetune_keras import heads, select

    keras.utils.set_random_seed(0)
    network = keras.applications.MobileNetV2(
        weights=None, include_top=False, alpha=0.35, input_shape=(32, 32, 3)
    )
    base = ftk.backbone(network)
    model = ftk.build(base, heads.Classification(10), freeze=select.backbone())

    class Images(keras.utils.PyDataset):
        num_batches = args.examples // 100

        def __getitem__(self, i):
            rng = np.random.default_rng(i)
            return rng.uniform(0, 255, (100, 32, 32, 3)).astype("float32"), np.arange(100) % 10

    before = resident()
    with tempfile.TemporaryDirectory() as folder:
        # A small budget, so that training reads the files as a large set would.
        settings = {"memory": 1 << 20, "key": "made", "verbose": 0}
        wall, cpu = timed(
            lambda: ftk.features(divide_prefix(model), Images(), directory=folder, **settings)
        )
        found = ftk.features(divide_prefix(model), Images(), directory=folder, **settings)
        _, suffix = ftk.split(model)
        suffix.compile("adamw", "sparse_categorical_crossentropy")
        epochs = timed(
            lambda: suffix.fit(found.dataset(100, shuffle=True), epochs=2, shuffle=False, verbose=0)
        )
    return {
        "examples": args.examples,
        "pass_wall": round(wall, 2),
        "pass_cpu": round(cpu, 2),
        "epoch_wall": round(epochs[0] / 2, 2),
        "features_mb": round(found.nbytes / 1e6, 1),
        "resident_before_mib": round(before),
        "resident_peak_mib": round(resident("VmHWM")),
    }


def divide_prefix(model):
    """The frozen part, always the same object, so that it is compiled once."""
    from finetune_keras.cache.split import divide

    return divide(model).prefix


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", choices=(*CASES, "growth"), action="append")
    parser.add_argument("--images", type=int, default=256, help="or texts")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--engine", action="append", help="one or several; keras by default")
    parser.add_argument(
        "--peers", help="a Python that has torch, torchvision and fastai, to compare resnet50 with"
    )
    parser.add_argument("--sizes", type=int, nargs="*", default=[1000, 10_000, 100_000])
    parser.add_argument("--examples", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out")
    args = parser.parse_args()
    if args.examples:
        print(json.dumps(growth(args)))
        return
    results = []
    for case in args.case or ["resnet50", "bert"]:
        if case == "growth":
            command = [sys.executable, __file__, "--examples"]
            rows = [
                json.loads(subprocess.check_output([*command, str(n)]).splitlines()[-1])
                for n in args.sizes
            ]
            results.append({"case": case, "rows": rows})
        else:
            results.append(compare(case, args))
        print(json.dumps(results[-1]), flush=True)
    if args.out:
        with open(args.out, "w") as file:
            file.write(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
