"""Callbacks for ``model.fit(callbacks=[...])`` and `finetune_keras.fit`."""

from finetune_keras.callbacks.ema import EMA
from finetune_keras.callbacks.gradual_thaw import GradualThaw, Thawed

__all__ = ["EMA", "GradualThaw", "Thawed"]
