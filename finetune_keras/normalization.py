"""Stochastic normalisation (Kou, You, Long and Wang 2020, "Stochastic Normalization", NeurIPS)."""

from __future__ import annotations

import numbers
from typing import Any

import keras
from keras import ops

from finetune_keras._errors import shown

__all__ = ["StochasticNormalization", "checked_seed", "probability"]


def probability(p: Any) -> float:
    """``p`` as a plain float.

    Raises:
        ValueError: unless it is a number from 0 to 1.
    """
    if isinstance(p, bool) or not isinstance(p, numbers.Real) or not 0 <= p <= 1:
        raise ValueError(f"p is a probability from 0 to 1; given {shown(p)}")
    return float(p)


def checked_seed(seed: Any) -> int | None:
    """``seed`` as Python's integer.

    Raises:
        ValueError: unless it is a whole number that 32 bits hold, or ``None``.
    """
    if seed is None:
        return None
    number = isinstance(seed, numbers.Integral) and not isinstance(seed, bool)
    if not number or not 0 <= seed < 2**32:
        raise ValueError(
            f"seed is a whole number from 0 to 2**32 - 1, or None; given {shown(seed)}"
        )
    return int(seed)


@keras.saving.register_keras_serializable(package="finetune_keras")
class StochasticNormalization(keras.layers.BatchNormalization):
    """Batch normalisation that in training uses, at random, its moving statistics.

    In each step and for each channel by itself, with probability ``p``,

        y = gamma * (x - mean) / sqrt(variance + epsilon) + beta

    has the moving mean and variance, and otherwise those of the batch; on few examples a network
    cannot rely on the statistics of its batches. The moving ones are updated as ever, before they
    are used, and no gradient flows through them. In inference, and where the layer is frozen, it
    is ``keras.layers.BatchNormalization``.

    Args:
        p: probability of the moving statistics: 0 is batch normalisation, 1 leaves out the
            statistics of the batch.
        seed: of the draws.
        **kwargs: as in ``keras.layers.BatchNormalization``.

    Raises:
        ValueError: for a ``p`` outside 0 and 1.

    Examples:
        >>> layer = StochasticNormalization(p=0.3, name="norm")
        >>> layer(keras.Input((4,))).shape
        (None, 4)
    """

    def __init__(self, p: float = 0.5, *, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.p, self.seed = probability(p), checked_seed(seed)
        if 0 < self.p < 1:
            self.seed_generator = keras.random.SeedGenerator(self.seed)

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalises ``inputs``; the output has their shape, in the layer's compute dtype."""
        by_batch = super().call(inputs, training=training, mask=mask)
        if not (training and self.trainable) or self.p == 0:
            return by_batch
        by_moving = self._by_moving(inputs)
        if self.p == 1:
            return by_moving
        shape = [1] * len(inputs.shape)
        shape[self.axis] = inputs.shape[self.axis]
        chosen = keras.random.uniform(shape, seed=self.seed_generator) < self.p
        return ops.where(chosen, by_moving, by_batch)

    def _by_moving(self, inputs: Any) -> Any:
        x = ops.cast(inputs, "float32")  # as Keras does: half precision would overflow
        outputs = ops.batch_normalization(
            x,
            # On JAX the value just assigned is a function of the batch.
            mean=ops.stop_gradient(ops.cast(self.moving_mean, x.dtype)),
            variance=ops.stop_gradient(ops.cast(self.moving_variance, x.dtype)),
            axis=self.axis,
            offset=ops.cast(self.beta, x.dtype) if self.center else None,
            scale=ops.cast(self.gamma, x.dtype) if self.scale else None,
            epsilon=self.epsilon,
        )
        return ops.cast(outputs, self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """``p`` and ``seed``, beside the config of a batch normalisation."""
        return {**super().get_config(), "p": self.p, "seed": self.seed}
