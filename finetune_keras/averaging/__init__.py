"""Averages of weights, after training.

- `snapshot` keeps the weights of a model, in memory or in a file, to go back to.
- `wise_ft` gives a model the best mix of its weights before fine-tuning and after.
- `soup` gives it the average of several fine-tuned models.
"""

from finetune_keras.averaging.snapshot import Snapshot, snapshot
from finetune_keras.averaging.soup import Soup, soup
from finetune_keras.averaging.wise_ft import Sweep, wise_ft

__all__ = ["Snapshot", "Soup", "Sweep", "snapshot", "soup", "wise_ft"]
