"""Never compute a frozen layer twice.

- `split` divides a model at the frontier between what is frozen and what learns.
- `features` runs a frozen network over a data set once and keeps what comes out, as a
  `FeatureSet`.
- `fit` trains a model so: one pass of the frozen part, then all epochs of the rest.
- `sharing` lets several trainings use the same features.
"""

from finetune_keras.cache.features import features
from finetune_keras.cache.featureset import FeatureSet
from finetune_keras.cache.fit import fit
from finetune_keras.cache.shared import sharing
from finetune_keras.cache.split import split

__all__ = ["FeatureSet", "features", "fit", "sharing", "split"]
