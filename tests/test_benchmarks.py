"""The programs in benchmarks/ start, name what is there, and (slowly) run at their smallest."""

import ast
import importlib
import inspect
import runpy
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import residual
from PIL import Image

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
# What they share, and what runs in an interpreter with other packages.
PARTS = ("common.py", "fine_tune_peers.py")
PROGRAMS = sorted(p.name for p in BENCHMARKS.glob("*.py") if p.name not in PARTS)


def start(monkeypatch, name, *given):
    """In this process, as Python starts a program."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", [name, *map(str, given)])
    runpy.run_path(str(BENCHMARKS / name), run_name="__main__")


@pytest.mark.parametrize("name", PROGRAMS)
def test_each_tells_its_options(name, monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        start(monkeypatch, name, "--help")
    assert ended.value.code == 0
    assert f"usage: {name}" in capsys.readouterr().out


def unknown(source: str) -> list[str]:
    """What a program takes from the package, as name or as keyword, that is not there."""
    tree, known, missing = ast.parse(source), {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name == "finetune_keras":
                    known[alias.asname] = importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("finetune_keras"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                known[alias.asname or alias.name] = getattr(module, alias.name, None)
                if not hasattr(module, alias.name):
                    missing.append(f"{node.module}.{alias.name}")

    def found(node: ast.expr):
        """The object that a dotted name stands for."""
        if isinstance(node, ast.Name):
            return known.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = found(node.value)
            if inspect.ismodule(owner) and not hasattr(owner, node.attr):
                missing.append(f"{owner.__name__}.{node.attr}")
            return getattr(owner, node.attr, None) if owner is not None else None
        return None

    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            found(node)
        if isinstance(node, ast.Call) and callable(called := found(node.func)):
            takes = inspect.signature(called).parameters
            if not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
                given = {k.arg for k in node.keywords if k.arg} - set(takes)
                missing += [f"{called.__name__}({name}=)" for name in sorted(given)]
    return sorted(set(missing))


def test_a_name_that_is_gone_is_seen():
    source = """
import finetune_keras as ftk
from finetune_keras import heads, nowhere
def main():
    from finetune_keras.cache import engine
    ftk.tune(ftk.l2sp(model, alpha=1, beeta=2), heads.Clasification(5))
"""
    assert unknown(source) == [
        "finetune_keras.cache.engine",
        "finetune_keras.heads.Clasification",
        "finetune_keras.nowhere",
        "finetune_keras.tune",
        "l2sp(beeta=)",
    ]


@pytest.mark.parametrize("name", [*PROGRAMS, *PARTS])
def test_each_names_what_there_is(name):
    assert unknown((BENCHMARKS / name).read_text()) == []


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """As benchmarks want them: five classes, each of a brightness, networks without training."""
    root, rng = tmp_path_factory.mktemp("DATA"), np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 2)):
        for c in range(5):
            folder = root / "flowers5" / part / f"class{c}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = (50 * c + rng.integers(0, 50, (40, 40, 3))).astype("uint8")
                Image.fromarray(pixels).save(folder / f"{i}.jpg")
    for alpha in (0.35, 1.0):
        network = keras.applications.MobileNetV2(
            (96, 96, 3), alpha=alpha, include_top=False, weights=None
        )
        for v in network.weights:  # or the signal dies on its way through
            if v.path.endswith("moving_variance"):
                v.assign(0.2 * np.ones(v.shape))
        file = root / "weights" / f"mobilenet_v2_{alpha}" / f"mobilenet_v2_{alpha}_224_no_top"
        file.parent.mkdir(parents=True)
        network.save_weights(f"{file}.weights.h5")
    file = root / "weights" / "resnet20_cifar10" / "resnet20_cifar10_notop.keras"
    file.parent.mkdir()
    residual(size=32).save(file)
    return root


SMALLEST = {
    "averaging": "--data DATA --images 2 --validation 2 --epochs 1 --size 32 --seeds 0 --norms",
    "cached_fit": "--case open --images 4 --batch 2 --epochs 1 --repeats 1",
    "cached_fit growth": "--case growth --sizes 200",
    "cached_fit resnet50": "--case resnet50 --images 2 --batch 1 --epochs 1 --repeats 1",
    "engines": "--backend BACKEND --images 2 --batch 1 --size 32",
    "feature_augmentation": "--data DATA --shots 5 --seeds 1 --steps 2 --noise 1 --brightness",
    "input_pipeline": "--data DATA/flowers5/train --images 10 --passes 1",
    "layerwise": "--data DATA --shots 2 --seeds 1 --epochs 1 --size 32",
    "lr_find": "--data DATA --case frozen --epochs 1 --seeds 1 --repeats 1 --rules",
    "lr_find open": "--data DATA --case open --epochs 1 --seeds 1 --repeats 1",
    "memory": "--backend BACKEND --batch 1 --size 32 --layers 2 --width 24 --tokens 8",
    "overhead memory": "memory --model letters_resnet --size 16",
    "overhead averages": "averages --size 16 --repeats 1",
    "overhead steps": "steps --model letters_resnet --size 16 --batch 2 --repeats 1",
    "probe": "--data DATA --images 5 --seeds 1",
    "regularisers": "--data DATA --shots 2 --seeds 1 --epochs 4",
    "schedules": "--data DATA --shots 2 --seeds 1 --epochs 1 --size 32 --rates 1e-3",
    "thaw": "--model letters_resnet --size 16 --repeats 1",
    "warps": "--size 16 --batch 2 --steps 2 --repeats 1",
}


@pytest.mark.slow
@pytest.mark.parametrize("case", SMALLEST)
def test_each_runs_at_its_smallest(case, photographs, monkeypatch, capsys):
    words = SMALLEST[case].replace("DATA", str(photographs))
    words = words.replace("BACKEND", keras.backend.backend())
    start(monkeypatch, f"{case.split()[0]}.py", *words.split())
    assert "{" in capsys.readouterr().out


def test_every_program_but_those_of_other_processes_is_run():
    run = {case.split()[0] + ".py" for case in SMALLEST}
    others = {"fine_tune.py", "peers.py", "robustness.py"}
    assert set(PROGRAMS) - run == others
