"""Any data as one ``tf.data.Dataset`` of ``(x, y)``.

Each function returns a plain ``tf.data.Dataset``, shuffled, batched and prefetched, with
``class_names``, ``num_classes``, ``counts`` and ``split``; see `dataset` for all attributes.

- `images` reads a folder of folders of images, `table` images that a CSV file or a data frame
  names, `arrays` what is in memory.
- `text` reads CSV, JSON lines and folders of text, `tfds` what TensorFlow Datasets has.
- `augmented` varies images in the pipeline, with mixup and cutmix; `augment` gives the layers.
- `preview` draws what the model will see.
- `scan` finds the files of a folder that are broken, double, or in two splits.
"""

from finetune_keras.data.augment import augment, augmented, one_hot
from finetune_keras.data.images import images
from finetune_keras.data.memory import arrays
from finetune_keras.data.preview import preview
from finetune_keras.data.scanning import Scan, scan
from finetune_keras.data.tables import table
from finetune_keras.data.text import text
from finetune_keras.data.tfds import tfds

__all__ = [
    "Scan",
    "arrays",
    "augment",
    "augmented",
    "images",
    "one_hot",
    "preview",
    "scan",
    "table",
    "text",
    "tfds",
]
