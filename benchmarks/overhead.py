"""What each way to fine-tune costs in a step of training, and averages after it.

    python benchmarks/overhead.py steps [--model resnet50] [--ways l2sp ema] [--out steps.json]
    python benchmarks/overhead.py averages [--out averages.json]
    python benchmarks/overhead.py memory [--model bert] [--ways l2sp ema] [--out memory.json]

``steps`` trains one network, all of it, on one batch: by plain AdamW, and by AdamW with one thing
more. All ways take a step in turn, in an order that is drawn anew each time; it prints the medians
of the ratios of CPU seconds and of wall seconds to plain AdamW of the same turn, and ``least``, the
shortest step over the shortest of plain AdamW. Each way has a model of its own. The least batch and
the smallest image are the worst case, since most of the work goes by the number of weights and not
by that of examples.

``averages`` sets the time of `finetune_keras.wise_ft` with 11 mixes and of a greedy
`finetune_keras.soup` of 3 against one ``model.evaluate`` on the same data: all layers open, and
with a frozen network, which runs once.

``memory`` counts the variables of each way, of the optimizer and of starts too, less those of plain
AdamW: exact, and without a step of training. It is given in bytes, and in shares of the weights.
What a step holds for as long as it lasts is not in it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from common import ratio, timed

import finetune_keras as ftk
from finetune_keras import heads, schedules, select


def of_images(name: str, size: int, batch: int) -> tuple:
    """A network with a new head, all of it open, and a batch."""
    base = ftk.backbone(name, weights=None, input_shape=(size, size, 3))
    x = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3)).astype("float32")
    return ftk.build(base, heads.Classification(10)), x, np.arange(batch) % 10


def bert(size: int, batch: int) -> tuple:
    """A BERT of MiniLM's size (22.7 million parameters), 128 tokens, and a batch."""
    import keras_hub

    network = keras_hub.models.BertBackbone(
        vocabulary_size=30522, num_layers=6, num_heads=12, hidden_dim=384, intermediate_dim=1536
    )
    base = ftk.backbone(network, cut_at="pooled_output")
    tokens = np.random.default_rng(0).integers(0, 30522, (batch, 128))
    x = {
        "token_ids": tokens,
        "segment_ids": np.zeros_like(tokens),
        "padding_mask": np.ones_like(tokens),
    }
    return ftk.build(base, heads.Classification(10)), x, np.arange(batch) % 10


def adamw(rate: float | schedules.LearningRateSchedule = 1e-6, **options) -> Callable:
    """Compiles by AdamW."""
    return lambda model: ftk.compile(model, optimizer="adamw", learning_rate=rate, **options)


def l2sp(model: keras.Model) -> keras.Model:
    """Towards the start."""
    ftk.l2sp(adamw()(model), alpha=0.01, beta=0.01)
    return model


MODELS = {
    "resnet50": partial(of_images, "resnet50"),
    "bert": bert,
    "letters_resnet": partial(of_images, "letters_resnet"),  # 9 normalisations, few weights
}
WAYS: dict[str, Callable[[keras.Model], keras.Model]] = {
    "plain": adamw(),
    "layerwise": adamw(layer_decay=0.8),
    "ema": adamw(ema_momentum=0.99),
    "layerwise and ema": adamw(layer_decay=0.8, ema_momentum=0.99),
    "l2sp": l2sp,
    "stochastic norm": lambda model: ftk.stochastic_norm(adamw()(model), 0.5, seed=0),
    "WarmupCosine": adamw(schedules.WarmupCosine(1e-6, 1000)),
    "OneCycle": adamw(schedules.OneCycle(1e-6, 1000)),
    "SlantedTriangular": adamw(schedules.SlantedTriangular(1e-6, 1000)),
}


def steps(name: str, ways: list[str], size: int, batch: int, repeats: int) -> dict:
    """Ratios of a step of training to one of plain AdamW."""
    models = {}
    for way in ("plain", *ways):
        model, x, y = MODELS[name](size, batch)
        models[way] = WAYS[way](model)
        for _ in range(2):  # traces, and warms up
            models[way].train_on_batch(x, y)
    turns = []
    for turn in range(repeats):
        order = random.Random(turn).sample(list(models), len(models))
        took = {way: timed(models[way].train_on_batch, x, y) for way in order}
        turns.append(took)
    wall, cpu = ({way: [t[way][i] for t in turns] for way in models} for i in (0, 1))
    return {
        "model": name,
        "plain_step_cpu_s": round(statistics.median(cpu["plain"]), 3),
        "cpu": {way: ratio(cpu[way], cpu["plain"]) for way in ways},
        "wall": {way: ratio(wall[way], wall["plain"]) for way in ways},
    }


def memory(name: str, ways: list[str], size: int) -> dict:
    """Bytes of variables beyond those of plain AdamW."""
    held = {}
    for way in ("plain", *ways):
        model = WAYS[way](MODELS[name](size, 1)[0])
        model.optimizer.build(model.trainable_variables)
        starts = (getattr(v.regularizer, "start", None) for v in model.weights)
        found = [*model.weights, *model.optimizer.variables, *(s for s in starts if s is not None)]
        held[way] = sum(map(nbytes, found))
        weights = sum(map(nbytes, model.weights))
    more = {way: held[way] - held["plain"] for way in ways}
    return {
        "model": name,
        "weights_bytes": weights,
        "plain_bytes": held["plain"],
        "more_bytes": more,
        "of_weights": {way: round(n / weights, 3) for way, n in more.items()},
    }


def nbytes(variable: keras.Variable) -> int:
    """Of one variable."""
    return keras.ops.convert_to_numpy(variable).nbytes


def averages(name: str, size: int, repeats: int, examples: int = 200) -> list[dict]:
    """CPU seconds of WiSE-FT and of a soup over those of one evaluation."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (examples, size, size, 3)).astype("float32")
    data = x, np.arange(examples) % 10
    rows = []
    for case, freeze in (("all layers open", None), ("network frozen", select.backbone())):
        base = ftk.backbone(name, weights=None, input_shape=(size, size, 3))
        model = ftk.build(base, heads.Classification(10), freeze=freeze)
        states = [ftk.snapshot(model)]
        for _ in range(3):
            for v in model.trainable_variables:
                v.assign(v + 1e-3 * rng.normal(size=v.shape).astype("float32"))
            states.append(ftk.snapshot(model))
        start, *runs = states
        calls = {
            "evaluate": partial(model.evaluate, *data, verbose=0),
            "wise_ft": partial(ftk.wise_ft, model, start, data, verbose=0),
            "soup": partial(ftk.soup, model, runs, data, verbose=0),
        }
        cpu: dict[str, list[float]] = {what: [] for what in calls}
        for turn in range(repeats + 1):
            runs[-1].restore(model)
            for what, call in calls.items():
                took = timed(call)[1]
                if turn:  # the first one traces
                    cpu[what].append(took)
        once = cpu.pop("evaluate")
        row = {"case": case, "evaluate_cpu_s": round(statistics.median(once), 2)}
        rows.append(row | {"cpu": {what: ratio(times, once) for what, times in cpu.items()}})
    return rows


def main() -> None:
    """Measures and prints, or writes, one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("steps", "averages", "memory"))
    parser.add_argument("--model", choices=MODELS, action="append")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS)[1:])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, help="of images: 96 for averages, or else 224")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    result: dict = {"backend": keras.backend.backend(), "keras": keras.__version__}
    if args.what == "averages":
        name = (args.model or ["letters_resnet"])[0]
        result |= {"model": name, "averages": averages(name, args.size or 96, args.repeats)}
    else:
        result |= {"batch": args.batch} if args.what == "steps" else {}
        result["models"] = []
        for name in args.model or ("resnet50", "bert"):
            ways = args.ways or list(WAYS)[1:]
            if name == "bert":
                ways = [w for w in ways if w != "stochastic norm"]
            if args.what == "steps":
                found = steps(name, ways, args.size or 224, args.batch, args.repeats)
            else:
                found = memory(name, ways, args.size or 224)
            result["models"].append(found)
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
