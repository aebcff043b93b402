"""Images from a folder, four ways in one run: ours, Keras' and PyTorch's.

    python benchmarks/input_pipeline.py [--data FOLDER] [--images 600] [--passes 5]

Each reads the same files to the same size, in batches of 32, shuffled: ``ftk.data.images``,
``keras.utils.image_dataset_from_directory``, and a ``torch.utils.data.DataLoader`` on a data set
that opens files with Pillow (what torchvision's ``ImageFolder`` does), with as many workers as
there are cores. Without ``--data`` it makes JPEGs of 400 x 300, and of 1600 x 1200, the size of a
photograph. The ways take turns; the first pass of each, which fills caches and starts workers, is
not counted. Prints one JSON line for each set: the median and least milliseconds an image, by the
clock and of the processor (children included), over the passes; and the median of the processor's
time as a share of what Keras' function took in the same pass, which others on the machine change
little. "strict" is ours with ``strict=True``: it tries all files first, and then nothing stands
between reading and batching, as nothing does for data that are not shuffled.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from PIL import Image

SIZE = 224


def made(folder: Path, count: int, width: int, height: int) -> Path:
    """A folder of two classes of JPEGs that compress like photographs."""
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / ("a", "b")[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 255, (height // 12, width // 12, 3), dtype="uint8")
        smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        noise = rng.normal(0, 8, (height, width, 3))
        pixels = np.clip(np.asarray(smooth) + noise, 0, 255).astype("uint8")
        Image.fromarray(pixels).save(path, quality=85)
    return folder


class Folder:
    """A map-style data set, as torchvision has it."""

    def __init__(self, files: list[str], labels: list[int], crop: bool):
        self.files, self.labels, self.crop = files, labels, crop

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple:
        import torch

        with Image.open(self.files[i]) as image:
            image = image.convert("RGB")
        box = None
        if self.crop:
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            box = (left, top, left + side, top + side)
        image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box)
        return torch.from_numpy(np.array(image)).float(), self.labels[i]


def ways(folder: Path, resize: str) -> dict:
    """The three, each as an iterable of batches."""
    import keras  # not above: PyTorch's workers import this file

    import finetune_keras as ftk

    crop = resize == "crop"
    ours = ftk.data.images(folder, size=SIZE, resize=resize)
    found = {
        "ours": ours,
        "strict": ftk.data.images(folder, size=SIZE, resize=resize, strict=True),
        "keras": keras.utils.image_dataset_from_directory(
            folder, image_size=(SIZE, SIZE), seed=0, crop_to_aspect_ratio=crop, verbose=False
        ),
    }
    try:
        from torch.utils.data import DataLoader
    except ImportError:
        return found
    data = Folder(ours.file_paths, ours.labels.tolist(), crop)
    found["torch"] = DataLoader(
        data,
        batch_size=32,
        shuffle=True,
        num_workers=os.cpu_count() or 1,
        persistent_workers=True,
        multiprocessing_context="spawn",
    )
    return found


def processor() -> float:
    """Seconds of the processor, of this process and, as far as they have ended, its children."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    seconds = own.ru_utime + own.ru_stime
    for child in Path(f"/proc/{os.getpid()}/task").glob("*/children"):
        for pid in child.read_text().split():
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def measured(folder: Path, passes: int, resize: str) -> dict:
    """Milliseconds an image of each way."""
    loaders = ways(folder, resize)
    count = len(loaders["ours"].labels)
    wall: dict[str, list] = {name: [] for name in loaders}
    cpu: dict[str, list] = {name: [] for name in loaders}
    for n in range(passes + 1):
        for name, loader in loaders.items():
            start, before = time.perf_counter(), processor()
            for _ in loader:
                pass
            if n:
                wall[name].append(1000 * (time.perf_counter() - start) / count)
                cpu[name].append(1000 * (processor() - before) / count)
    return {
        name: {
            "wall_ms": round(statistics.median(wall[name]), 3),
            "wall_ms_least": round(min(wall[name]), 3),
            "cpu_ms": round(statistics.median(cpu[name]), 3),
            "cpu_ms_least": round(min(cpu[name]), 3),
            "cpu_to_keras": round(
                statistics.median(a / b for a, b in zip(cpu[name], cpu["keras"], strict=True)), 3
            ),
        }
        for name in loaders
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="a folder of classes, not of splits")
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--resize", choices=["crop", "squash"], default="squash")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        sets = {str(args.data): args.data} if args.data else {}
        if not args.data:
            sets["400 x 300"] = made(Path(place) / "small", args.images, 400, 300)
            sets["1600 x 1200"] = made(Path(place) / "large", args.images // 8, 1600, 1200)
        for name, folder in sets.items():
            found = measured(folder, args.passes, args.resize)
            print(json.dumps({"files": name, "resize": args.resize, **found}), flush=True)


if __name__ == "__main__":
    main()
