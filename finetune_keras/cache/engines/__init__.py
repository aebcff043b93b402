"""Inference engines for the frozen part of a model, which runs once over the data.

``"keras"`` is exact and the default. OpenVINO and ONNX Runtime compute the same function faster on
many CPUs: `choose` exports the model to them, and takes them only if they agree with Keras on a
batch of the user's own data.
"""

from finetune_keras.cache.engines.choosing import NAMES, choose
from finetune_keras.cache.engines.engine import Engine, EngineRecord

__all__ = ["NAMES", "Engine", "EngineRecord", "choose"]
