"""What it costs that Keras does not compile steps with a layer that warps images, on JAX.

    KERAS_BACKEND=jax python benchmarks/warps.py

Epochs of ``letters_resnet`` with ``RandomRotation`` in front, all layers learning, with the step
compiled, as `finetune_keras` has it, and not, as Keras has it by itself; the two take turns.
"""

from __future__ import annotations

import argparse
import json

import keras
import numpy as np
from common import ratio, timed

import finetune_keras as ftk


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=32, help="pixels")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10, help="of an epoch")
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 255, (args.steps * args.batch, args.size, args.size, 3)).astype("float32")
    y = np.arange(len(x)) % 10

    def epoch(jit_compile: bool | str):
        model = ftk.build(
            ftk.backbone("letters_resnet", input_shape=x.shape[1:]),
            ftk.heads.Classification(10),
            augment=keras.layers.RandomRotation(0.05, seed=0),
            freeze=None,
            jit_compile=jit_compile,
        )

        def run() -> None:
            model.fit(x, y, batch_size=args.batch, verbose=0)

        return run

    compiled, plain = epoch("auto"), epoch(False)
    first = [timed(each) for each in (compiled, plain)]
    times = [[timed(each) for each in (compiled, plain)] for _ in range(args.repeats)]
    told = {"backend": keras.backend.backend(), "images": list(x.shape)}
    for i, clock in enumerate(("wall", "CPU")):
        kinds = [[turn[k][i] for turn in times] for k in range(2)]
        told[f"{clock}: not compiled over compiled"] = ratio(kinds[1], kinds[0])
        told[f"{clock} seconds"] = [round(min(s), 2) for s in kinds]
        told[f"{clock} seconds of the first epoch"] = [round(s[i], 1) for s in first]
    print(json.dumps(told))


if __name__ == "__main__":
    main()
