"""Models as graphs: what they are made of, and surgery on it.

- `opened` lists all that a model computes, nested models opened, as an `Opened` of `Call`s and
  `Unit`s with unique paths. `ancestors` and `descendants` follow it.
- `replace` gives a model with other layers in place of some.
- `is_functional` says whether a model's graph can be read.

These are public; the other names here serve the rest of the library.
"""

from finetune_keras.graph.surgery import locate as locate
from finetune_keras.graph.surgery import rebuild as rebuild
from finetune_keras.graph.surgery import replace
from finetune_keras.graph.walk import (
    Call,
    Opened,
    Unit,
    ancestors,
    descendants,
    is_functional,
    opened,
)
from finetune_keras.graph.walk import ends as ends
from finetune_keras.graph.walk import replay as replay
from finetune_keras.graph.walk import tape as tape

__all__ = [
    "Call",
    "Opened",
    "Unit",
    "ancestors",
    "descendants",
    "is_functional",
    "opened",
    "replace",
]
