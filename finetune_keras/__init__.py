"""Transfer learning for Keras 3: any pretrained model becomes a plain ``keras.Model`` that is
right by construction, and never computes a frozen layer twice.

>>> import finetune_keras as ftk
>>> from finetune_keras import heads, select
>>> base = ftk.backbone("letters_resnet", input_shape=(24, 24, 3))
>>> model = ftk.build(base, heads.Classification(10), freeze=select.backbone())
>>> _ = ftk.thaw(model, select.blocks(slice(-2, None)))
"""

from finetune_keras import callbacks, data, graph, heads, recipes, record, schedules, select
from finetune_keras._errors import CacheError, HeadError, SelectionError, WeightsError
from finetune_keras._version import __version__
from finetune_keras.averaging import Snapshot, Soup, Sweep, snapshot, soup, wise_ft
from finetune_keras.backbones import (
    Backbone,
    Listing,
    Loaded,
    backbone,
    list_backbones,
    load_torch,
    preprocessor,
)
from finetune_keras.build import build
from finetune_keras.cache import FeatureSet, features, fit, split
from finetune_keras.check import Finding, Findings, check
from finetune_keras.compile import compile  # noqa: A004
from finetune_keras.cross_validate import CrossValidation, cross_validate
from finetune_keras.describe import Description, describe
from finetune_keras.freeze import Change, freeze, thaw
from finetune_keras.load import load
from finetune_keras.lr_find import LRFind, lr_find
from finetune_keras.normalization import StochasticNormalization
from finetune_keras.optimizers import ema, layerwise
from finetune_keras.predict import Prediction, Predictions, predict
from finetune_keras.recipes import fine_tune
from finetune_keras.regularize.l2sp import L2SP, l2sp
from finetune_keras.regularize.reinit import Reinit, reinit
from finetune_keras.regularize.stochastic import stochastic_norm
from finetune_keras.replace_head import replace_head

__all__ = [
    "L2SP",
    "Backbone",
    "CacheError",
    "Change",
    "CrossValidation",
    "Description",
    "FeatureSet",
    "Finding",
    "Findings",
    "HeadError",
    "LRFind",
    "Listing",
    "Loaded",
    "Prediction",
    "Predictions",
    "Reinit",
    "SelectionError",
    "Snapshot",
    "Soup",
    "StochasticNormalization",
    "Sweep",
    "WeightsError",
    "__version__",
    "backbone",
    "build",
    "callbacks",
    "check",
    "compile",
    "cross_validate",
    "data",
    "describe",
    "ema",
    "features",
    "fine_tune",
    "fit",
    "freeze",
    "graph",
    "heads",
    "l2sp",
    "layerwise",
    "list_backbones",
    "load",
    "load_torch",
    "lr_find",
    "predict",
    "preprocessor",
    "recipes",
    "record",
    "reinit",
    "replace_head",
    "schedules",
    "select",
    "snapshot",
    "soup",
    "split",
    "stochastic_norm",
    "thaw",
    "wise_ft",
]
