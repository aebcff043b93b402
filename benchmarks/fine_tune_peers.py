"""The trainings of ``fine_tune.py`` by PyTorch and fastai; it runs this by another interpreter.

Reads a job a line and answers with one. The folder given has an ``.npz`` a set: images, labels, the
weights of Keras' MobileNetV2 in their order, and the features that it gives for two images, which
the network here must give too. One thread computes: on so small a network a second one makes no run
shorter, and waits busily.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from fastai.vision.all import CrossEntropyLossFlat, DataLoaders, vision_learner
from torch import nn
from torchvision.models import mobilenet_v2


def network(data: dict) -> nn.Sequential:
    """MobileNetV2 of width 0.35 without its top, as Keras computes it."""
    norm = functools.partial(nn.BatchNorm2d, eps=1e-3)
    made = mobilenet_v2(width_mult=0.35, norm_layer=norm).features
    weights = (torch.tensor(data[k]) for k in sorted(data) if k.startswith("weight_"))
    with torch.no_grad():
        for layer in made.modules():
            if isinstance(layer, nn.Conv2d):
                w = next(weights)
                layer.weight.copy_(w.permute((2, 3, 0, 1) if layer.groups > 1 else (3, 2, 0, 1)))
                if layer.stride == (2, 2):  # Keras pads on one side
                    layer.padding = (0, 0)
                    layer.register_forward_pre_hook(
                        lambda _, given: nn.functional.pad(given[0], (0, 1, 0, 1))
                    )
            elif isinstance(layer, nn.BatchNorm2d):
                for own in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                    own.copy_(next(weights))
        assert next(weights, None) is None
        given = made.eval()(images(data["x"][:2])).mean((2, 3)).numpy()
    np.testing.assert_allclose(given, data["features"], atol=1e-4)
    return made


def images(x: np.ndarray) -> torch.Tensor:
    """Channels first."""
    return torch.tensor(x).permute(0, 3, 1, 2).contiguous()


class Job:
    """One training."""

    def __init__(self, data: dict, job: dict):
        self.data, self.job = data, job
        self.x, self.y = images(data["x"][job["rows"]]), torch.tensor(data["y"][job["rows"]]).long()
        self.classes = int(data["y"].max()) + 1
        torch.manual_seed(job["seed"])

    def scored(self, model: nn.Module, cpu: float, wall: float) -> list[float]:
        """What a model is worth by now, and both clocks."""
        training = model.training
        with torch.no_grad():
            right = torch.cat([model.eval()(x) for x in images(self.data["x_test"]).split(64)])
        model.train(training)
        accuracy = float((right.argmax(1).numpy() == self.data["y_test"]).mean())
        return [round(accuracy, 4), round(cpu, 2), round(wall, 2)]

    def torch(self) -> dict:
        """Everything by SGD, as in PyTorch's tutorial."""
        model = nn.Sequential(
            network(self.data), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, self.classes)
        ).train()
        optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 7, 0.1)
        track, cpu, wall, last = [], 0.0, 0.0, 0.0
        while len(track) < self.job["epochs"] or cpu + last <= self.job["cpu"]:
            began = time.process_time(), time.perf_counter()
            for rows in torch.randperm(len(self.x)).split(self.job["batch"]):
                loss = nn.functional.cross_entropy(model(self.x[rows]), self.y[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            schedule.step()
            last = time.process_time() - began[0]
            cpu, wall = cpu + last, wall + time.perf_counter() - began[1]
            track.append(self.scored(model, cpu, wall))
        return {"track": track}

    def fastai(self) -> dict:
        """``fine_tune`` by its defaults; an epoch of the head first."""
        most = self.job["epochs"]
        track = [self._fastai(most)] * most
        fits = min(most, max(2, int(self.job["cpu"] * most / track[0][1])))
        return {"track": track, "in time": [track[0] if fits == most else self._fastai(fits)]}

    def _fastai(self, epochs: int) -> list[float]:
        rows = list(zip(self.x, self.y, strict=True))
        loaders = DataLoaders.from_dsets(
            rows, rows[:1], bs=self.job["batch"], num_workers=0, device="cpu"
        )
        learner = vision_learner(
            loaders,
            # fastai cuts a network before its pooling.
            lambda pretrained: nn.Sequential(network(self.data), nn.AdaptiveAvgPool2d(1)),
            pretrained=False,
            n_out=self.classes,
            loss_func=CrossEntropyLossFlat(),
            normalize=False,
        )
        learner._do_epoch_validate = lambda *a, **k: None  # the others do not validate either
        began = time.process_time(), time.perf_counter()
        with learner.no_bar(), learner.no_logging():
            learner.fine_tune(epochs - 1)
        cpu, wall = time.process_time() - began[0], time.perf_counter() - began[1]
        return self.scored(learner.model, cpu, wall)


def main() -> None:
    """Answers until there is no more."""
    torch.set_num_threads(1)
    folder, read = Path(sys.argv[1]), functools.cache(lambda path: dict(np.load(path)))
    for line in sys.stdin:
        job = json.loads(line)
        with contextlib.redirect_stdout(io.StringIO()):
            found = getattr(Job(read(folder / f"{job['set']}.npz"), job), job["way"])()
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
