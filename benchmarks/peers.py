"""The same training by others: a frozen ResNet50 with a new head, by plain PyTorch or by fastai.

    python benchmarks/peers.py --peer torch
    python benchmarks/cached_fit.py --case resnet50 --peers PYTHON

Network, head, batch, epochs and decoded data are those of ``cached_fit.py``, which runs this in
each of its repeats by an interpreter that has torch, torchvision and fastai. PyTorch runs the
network without gradients; fastai leaves normalisation frozen (``train_bn=False``). Prints one line
of JSON: wall and CPU seconds of all epochs, after a warm-up on two batches.
"""

from __future__ import annotations

import argparse
import json
import time

# Without it PyTorch hands memory back and asks for it again at each batch, which on a CPU may take
# up to half of its time.
TUNED = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=1073741824:"
    "glibc.malloc.trim_threshold=4294967296"
}


def head():
    """A hidden layer of 1024, and ten classes."""
    from torch import nn

    return nn.Sequential(nn.Linear(2048, 1024), nn.ReLU(), nn.Linear(1024, 10))


def by_torch(x, y, batch: int):
    """A function that trains for a number of epochs."""
    import torch
    from torch import nn
    from torchvision.models import resnet50

    network = resnet50(weights=None)
    network.fc = nn.Identity()
    network.eval()
    top = head()
    optimizer = torch.optim.AdamW(top.parameters(), 1e-3)

    def fit(n: int, epochs: int) -> None:
        for _ in range(epochs):
            order = torch.randperm(n)
            for i in range(0, n, batch):
                rows = order[i : i + batch]
                with torch.no_grad():
                    features = network(x[rows])
                loss = nn.functional.cross_entropy(top(features), y[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    return fit


def by_fastai(x, y, batch: int):
    """The same by a learner of fastai."""
    from fastai.vision.all import (
        CrossEntropyLossFlat,
        DataLoaders,
        ProgressCallback,
        Recorder,
        resnet50,
        vision_learner,
    )
    from torch import nn

    top = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), head())

    def learner(n: int):
        rows = list(zip(x[:n], y[:n], strict=True))
        data = DataLoaders.from_dsets(rows, rows[:1], bs=batch, num_workers=0, device="cpu")
        data.c = 10
        made = vision_learner(
            data,
            resnet50,
            pretrained=False,
            n_out=10,
            custom_head=top,
            loss_func=CrossEntropyLossFlat(),
            train_bn=False,
            normalize=False,
        )
        made.freeze()
        made._do_epoch_validate = lambda *a, **k: None  # the others do not validate either
        made.remove_cbs([c for c in made.cbs if isinstance(c, Recorder | ProgressCallback)])
        return made

    made = {}

    def fit(n: int, epochs: int) -> None:
        if n not in made:
            made[n] = learner(n)
        made[n].fit(epochs, 1e-3)

    fit.prepare = lambda n: made.setdefault(n, learner(n))
    return fit


PEERS = {"torch": by_torch, "fastai": by_fastai}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", choices=PEERS, default="torch")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    import torch

    torch.manual_seed(0)
    x = torch.rand(args.images, 3, 224, 224)
    y = torch.arange(args.images) % 10
    fit = PEERS[args.peer](x, y, args.batch)
    fit(2 * args.batch, 1)
    getattr(fit, "prepare", lambda n: None)(args.images)
    wall, cpu = time.perf_counter(), time.process_time()
    fit(args.images, args.epochs)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(json.dumps({"peer": args.peer, "wall": wall, "cpu": cpu, "torch": torch.__version__}))


if __name__ == "__main__":
    main()
