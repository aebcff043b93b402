"""Any data as one ``tf.data.Dataset`` of ``(x, y)``.

Each function returns a plain ``tf.data.Dataset``, shuffled, batched and prefetched, with
``class_names``, ``num_classes``, ``counts`` and ``split``.
"""

__all__: list[str] = []
