"""Heads: from features to predictions, with the loss, the metrics and the labels that fit.

A head is a frozen dataclass. Called on a features tensor it adds its layers, all of them named
``ftk_head_*``, and returns the output tensor.
"""

from finetune_keras.heads.base import Head
from finetune_keras.heads.classification import Classification
from finetune_keras.heads.multi import Multi
from finetune_keras.heads.ordinal import Ordinal
from finetune_keras.heads.regression import Regression

__all__ = ["Classification", "Head", "Multi", "Ordinal", "Regression"]
