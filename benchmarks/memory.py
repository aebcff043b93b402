"""Peak memory of a training step, by backend: a frozen network, and blocks computed again.

    python benchmarks/memory.py
    python benchmarks/memory.py --case remat --layers 12 --width 384 --batch 32 --tokens 128

Each case runs in a process of its own, and the peak of its resident memory is read from the
operating system, less what the process held before the model was built. (On a GPU this says
nothing.) Prints one JSON line a case, and the ratios.
"""

import argparse
import json
import os
import subprocess
import sys


def frozen(args) -> None:
    """ResNet50 frozen with a new head: `fit` keeps no activations of what is frozen."""
    import numpy as np

    import finetune_keras as ftk
    from finetune_keras import heads, select

    size = args.size
    base = ftk.backbone("resnet50", weights=None, input_shape=(size, size, 3))
    freeze = select.backbone() if args.variant == "frozen" else None
    model = ftk.build(base, heads.Classification(10), freeze=freeze)
    start(args)
    x = np.zeros((2 * args.batch, size, size, 3), "float32")
    model.fit(x, np.zeros(2 * args.batch, "int32"), batch_size=args.batch, verbose=0)


def remat(args) -> None:
    """A BERT whose encoder layers all learn, with and without activations computed again."""
    import keras_hub
    import numpy as np

    import finetune_keras as ftk
    from finetune_keras import heads

    bert = keras_hub.models.BertBackbone(
        vocabulary_size=1000,
        num_layers=args.layers,
        num_heads=6,
        hidden_dim=args.width,
        intermediate_dim=4 * args.width,
        max_sequence_length=args.tokens,
    )
    base = ftk.backbone(bert, cut_at="pooled_output", remat=args.variant == "remat")
    model = ftk.build(base, heads.Classification(2))
    start(args)
    shape = (2 * args.batch, args.tokens)
    names = ("token_ids", "segment_ids", "padding_mask")
    x = {n: np.ones(shape, "int32") for n in names}
    x["segment_ids"][:] = 0
    model.fit(x, np.zeros(2 * args.batch, "int32"), batch_size=args.batch, verbose=0)


def start(args) -> None:
    args.before = _resident("VmRSS")


def _resident(key: str) -> float:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key)) / 1024


CASES = {"frozen": (frozen, ("open", "frozen")), "remat": (remat, ("plain", "remat"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES, action="append")
    parser.add_argument("--backend", choices=("tensorflow", "jax", "torch"), action="append")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=160, help="of the images")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.variant:
        import time

        run, _ = CASES[args.case[0]]
        began = time.perf_counter()
        run(args)
        peak = _resident("VmHWM") - args.before
        print(json.dumps({"mib": round(peak), "seconds": round(time.perf_counter() - began, 1)}))
        return
    numbers = ("batch", "size", "layers", "width", "tokens")
    flags = [f"--{name}={getattr(args, name)}" for name in numbers]
    for case in args.case or CASES:
        for backend in args.backend or ("tensorflow", "jax", "torch"):
            found = {}
            for variant in CASES[case][1]:
                command = [sys.executable, __file__, "--case", case, "--variant", variant, *flags]
                done = subprocess.run(
                    command,
                    env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
                    capture_output=True,
                    text=True,
                    check=False,
                )
                if done.returncode:
                    sys.exit(done.stderr[-2000:])
                found[variant] = json.loads(done.stdout.splitlines()[-1])
                line = {"case": case, "backend": backend, "variant": variant, **found[variant]}
                print(json.dumps(line), flush=True)
            first, second = (found[v]["mib"] for v in CASES[case][1])
            print(f"{case}, {backend}: {second / first:.2f} of the memory", flush=True)


if __name__ == "__main__":
    main()
