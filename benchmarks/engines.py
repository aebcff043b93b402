"""One pass of a frozen ResNet50 by each engine: time, relative error, memory.

    pip install 'finetune_keras[openvino,onnx]'
    python benchmarks/engines.py
    python benchmarks/engines.py --backend torch --size 160

Each engine runs in a process of its own on the same images (normal, random weights). Wall and CPU
seconds are of one pass over all images, the better of two, without export and warm-up, which are
``prepare``. The peak of resident memory, export included, is less what the process held before.
Prints one JSON line an engine, and the ratios to Keras.
"""

import argparse
import json
import os
import subprocess
import sys
import time

from common import resident

ENGINES = ("keras", "openvino", "openvino-bfloat16", "onnxruntime")


def measured(args) -> dict:
    """One engine, in this process."""
    import keras
    import numpy as np

    from finetune_keras.cache import engines

    keras.utils.set_random_seed(0)
    shape = (args.size, args.size, 3)
    model = keras.applications.ResNet50(
        weights=None, include_top=False, pooling="avg", input_shape=shape
    )
    x = np.random.default_rng(0).normal(size=(args.images, *shape)).astype("float32")
    batches = [x[i : i + args.batch] for i in range(0, len(x), args.batch)]
    before = resident()
    began = time.perf_counter()
    try:
        chosen = engines.choose(model, [batches[0]], args.engine)
    except (ValueError, ImportError) as e:
        return {"engine": args.engine, "failed": str(e)}
    chosen.run([batches[0]])
    prepare = time.perf_counter() - began
    passes = []
    for _ in range(2):
        wall, cpu = time.perf_counter(), time.process_time()
        for batch in batches:
            chosen.run([batch])
        passes.append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        "engine": args.engine,
        "wall": round(min(w for w, _ in passes), 2),
        "cpu": round(min(c for _, c in passes), 2),
        "prepare": round(prepare, 1),
        "error": float(f"{chosen.record.error:.2g}"),
        "mib": round(resident("VmHWM") - before),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=("tensorflow", "jax", "torch"), default="tensorflow")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=224, help="of the images")
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.engine:
        print(json.dumps(measured(args)))
        return
    flags = [f"--{n}={getattr(args, n)}" for n in ("images", "batch", "size")]
    found = {}
    for engine in ENGINES:
        done = subprocess.run(
            [sys.executable, __file__, "--engine", engine, *flags],
            env={**os.environ, "KERAS_BACKEND": args.backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(done.stderr[-2000:])
        line = {"backend": args.backend, **json.loads(done.stdout.splitlines()[-1])}
        print(json.dumps(line), flush=True)
        if "failed" not in line:
            found[engine] = line
    for engine, line in found.items():
        ratios = {k: round(line[k] / found["keras"][k], 2) for k in ("wall", "cpu", "mib")}
        print(json.dumps({"engine": engine, "to_keras": ratios}), flush=True)


if __name__ == "__main__":
    main()
