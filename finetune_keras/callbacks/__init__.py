"""Callbacks for ``model.fit`` and `finetune_keras.fit`."""

from finetune_keras.callbacks.ema import EMA

__all__ = ["EMA"]
