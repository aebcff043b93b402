"""Any data as one ``tf.data.Dataset`` of ``(x, y)``.

Each function returns a plain ``tf.data.Dataset``, shuffled, batched and prefetched, with
``class_names``, ``num_classes``, ``counts`` and ``split``; see `dataset` for all attributes.

- `images` reads a folder of folders of images.
"""

from finetune_keras.data.images import images

__all__ = ["images"]
