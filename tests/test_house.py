"""The shape of the house: imports go downward, files stay small, public names are documented."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import finetune_keras

ROOT = Path(finetune_keras.__file__).parent

# From the ground up: a module may import those before it in this list.
ORDER = [
    "_version",
    "_errors",
    "_optional",
    "_plots",
    "_private",
    "arrays",
    "attached",
    "data.order",
    "data.split",
    "data.formats",
    "data.trial",
    "data.dataset",
    "data.labels",
    "data.pixels",
    "data.folders",
    "data.images",
    "data.memory",
    "data.records",
    "data.tables",
    "data.scanning",
    "data.text",
    "data.tfds",
    "data.augment",
    "data.preview",
    "data",
    "precision",
    "tape",
    "graph.walk",
    "graph.surgery",
    "graph",
    "jit",
    "parts",
    "depth",
    "blocks",
    "select",
    "flags",
    "schedules",
    "optimizers.started",
    "optimizers.checks",
    "optimizers.newcomers",
    "optimizers.wrapper",
    "optimizers.moves",
    "optimizers.state",
    "optimizers.scheduled",
    "optimizers.layerwise",
    "optimizers.ema",
    "optimizers",
    "record",
    "normalization",
    "heads.base",
    "heads.names",
    "heads.pooling",
    "heads.augmentation",
    "heads.trunk",
    "heads.classification",
    "heads.regression",
    "heads.ordinal",
    "heads.missing",
    "heads.uncertainty",
    "heads.multi",
    "heads",
    "losses",
    "compile",
    "regularize",
    "regularize.l2sp",
    "regularize.reinit",
    "freeze",
    "describe",
    "load",
    "callbacks.ema",
    "callbacks.checks",
    "callbacks.steps",
    "callbacks.gradual_thaw",
    "callbacks",
    "backbones.letters",
    "backbones.preprocessing",
    "backbones.legacy.config",
    "backbones.legacy.tf_ops",
    "backbones.legacy.network",
    "backbones.legacy.weights",
    "backbones.legacy.gates",
    "backbones.legacy",
    "backbones.whole",
    "backbones.files",
    "backbones.taps",
    "backbones.rebuild",
    "backbones.remat",
    "backbones.loaded",
    "backbones.base",
    "backbones.stem",
    "backbones.channels",
    "backbones.models",
    "backbones.scopes",
    "backbones.saved_files",
    "backbones.module",
    "backbones.adopted",
    "backbones.applications",
    "backbones.listing",
    "backbones.checkpoints",
    "backbones.intake",
    "backbones.presets",
    "backbones.torch_weights.reader",
    "backbones.torch_weights.layout",
    "backbones.torch_weights.names",
    "backbones.torch_weights.apply",
    "backbones.torch_weights.family",
    "backbones.torch_weights.adapt",
    "backbones.torch_weights.resnet",
    "backbones.torch_weights.vgg",
    "backbones.torch_weights.densenet",
    "backbones.torch_weights.mobilenet",
    "backbones.torch_weights.efficientnet",
    "backbones.torch_weights.convnext",
    "backbones.torch_weights.vit",
    "backbones.torch_weights",
    "backbones.saved_model",
    "backbones.named",
    "backbones",
    "regularize.stochastic",
    "build",
    "replace_head",
    "outputs",
    "check.findings",
    "check.sample",
    "check.shapes",
    "check.flow",
    "check.pixels",
    "check.labels",
    "check.classes",
    "check.balance",
    "check.answers",
    "check.training",
    "check.memory",
    "check",
    "predict.predictions",
    "predict.images",
    "predict",
    "cache.digest",
    "cache.streams",
    "cache.batch",
    "cache.sliced",
    "cache.source",
    "cache.cut",
    "cache.split",
    "cache.augment",
    "cache.fingerprint",
    "cache.engines.engine",
    "cache.engines.exact",
    "cache.engines.exported",
    "cache.engines.choosing",
    "cache.engines",
    "cache.rows",
    "cache.manifest",
    "cache.store",
    "cache.shared",
    "cache.featureset",
    "cache.shuffled",
    "cache.forward",
    "cache.features",
    "cache.bridge",
    "cache.probe",
    "cache.answers",
    "cache.solver",
    "cache.solved",
    "cache.training",
    "cache.refuse",
    "cache.stages",
    "cache.fit",
    "cache",
    "averaging.place",
    "averaging.snapshot",
    "averaging.sources",
    "averaging.refresh",
    "averaging.scoring",
    "averaging.wise_ft",
    "averaging.soup",
    "averaging",
    "lr_find.found",
    "lr_find.kept",
    "lr_find.batches",
    "lr_find",
    "recipes.phase",
    "recipes.statistics",
    "recipes.best",
    "recipes.progress",
    "recipes.examples",
    "recipes.plan",
    "recipes.rate",
    "recipes.task",
    "recipes.measure",
    "recipes.named",
    "recipes.prepared",
    "recipes.refit",
    "recipes.soften",
    "recipes.aside",
    "recipes.chance",
    "recipes.folder",
    "recipes.identity",
    "recipes.survive",
    "recipes.run",
    "recipes.fine_tune",
    "recipes",
    "cross_validate.folds",
    "cross_validate.record",
    "cross_validate.held_out",
    "cross_validate.jobs",
    "cross_validate.runs",
    "cross_validate",
    "",
]


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        yield name.removesuffix("__init__").rstrip("."), path


def imported(path: Path) -> set[str]:
    """The modules of this package that a file imports."""
    known = {name for name, _ in modules()}
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("finetune_keras"):
            inside = node.module.removeprefix("finetune_keras").lstrip(".")
            for alias in node.names:
                below = f"{inside}.{alias.name}".lstrip(".")
                found.add(below if below in known else inside)
    return found


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=lambda v: str(v) or "top")
def test_imports_go_downward(name, path):
    assert name in ORDER, f"give {name} its place in ORDER"
    above = [i for i in imported(path) if ORDER.index(i) >= ORDER.index(name)]
    assert not above, f"{name} imports {above} from above itself"


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=lambda v: str(v) or "top")
def test_files_stay_small(name, path):
    assert len(path.read_text().splitlines()) <= 400


def test_private_keras_is_touched_in_one_module_only():
    for name, path in modules():
        if name == "_private":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found = re.match(r"keras\.src\.\w", node.value)
                assert not found, f"{name} has {node.value!r}"
            if isinstance(node, ast.ImportFrom | ast.Import):
                names = [getattr(node, "module", "") or "", *(a.name for a in node.names)]
                assert not any(n.startswith("keras.src") for n in names), f"{name} imports {names}"


def test_keras_and_numpy_are_all_that_is_imported_at_import():
    allowed = {*sys.stdlib_module_names, "keras", "numpy", "finetune_keras"}
    for name, path in modules():
        for node in ast.parse(path.read_text()).body:  # what stands in functions comes later
            if isinstance(node, ast.ImportFrom | ast.Import):
                names = [getattr(node, "module", "") or "", *(a.name for a in node.names)]
                names = names[:1] if isinstance(node, ast.ImportFrom) else names[1:]
                assert {n.split(".")[0] for n in names} <= allowed, f"{name} imports {names}"


def public():
    for info in [finetune_keras, *pkgutil.walk_packages([str(ROOT)], "finetune_keras.")]:
        module = info if inspect.ismodule(info) else importlib.import_module(info.name)
        if module.__name__.rsplit(".", 1)[-1].startswith("_"):
            continue
        for name in getattr(module, "__all__", ()):
            thing = getattr(module, name)
            if inspect.isfunction(thing) or inspect.isclass(thing):
                yield pytest.param(thing, id=f"{module.__name__}.{name}")


@pytest.mark.parametrize("thing", list(public()))
def test_public_names_are_documented(thing):
    assert (thing.__doc__ or "").strip()


@pytest.mark.parametrize(
    "name", [n for n, _ in modules() if n not in ("_version", "_private", "backbones.letters")]
)
def test_examples_in_docstrings_run(name):
    module = importlib.import_module(f"finetune_keras.{name}".rstrip("."))
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS, extraglobs={})
    assert result.failed == 0


def test_import_pulls_in_no_heavy_package_and_changes_nothing():
    code = (
        "import sys, keras; before = set(sys.modules); policy = keras.config.dtype_policy().name\n"
        "import finetune_keras\n"
        "new = {m.split('.')[0] for m in set(sys.modules) - before}\n"
        "heavy = {'sklearn', 'tensorflow_hub', 'tensorflow_datasets', 'keras_hub', 'matplotlib'}\n"
        "assert not new & heavy, new & heavy\n"
        "assert keras.config.dtype_policy().name == policy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
