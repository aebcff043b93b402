"""SavedModels as TF Hub has them, small and at random, written by TensorFlow itself."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np


def conv_net(folder: Path, *, size: int | None = None) -> Path:
    """An image module: a stem and two blocks with batch normalisation, and the attributes that
    TF Hub asks a reusable SavedModel for.
    """
    import tensorflow as tf

    rng = np.random.default_rng(5)

    class Conv(tf.Module):
        def __init__(self, inside, outside, name):
            super().__init__(name=name)
            self.norm = Norm(outside, name=f"{name}_bn")
            with self.name_scope:
                value = rng.normal(0, 0.3, (3, 3, inside, outside))
                self.kernel = tf.Variable(value, dtype=tf.float32, name="kernel")

        def __call__(self, x, training):
            return tf.nn.relu(self.norm(tf.nn.conv2d(x, self.kernel, 1, "SAME"), training))

    class Norm(tf.Module):
        def __init__(self, width, name):
            super().__init__(name=name)
            with self.name_scope:
                self.gamma = tf.Variable(tf.ones(width), name="gamma")
                self.beta = tf.Variable(tf.zeros(width), name="beta")
                self.mean = tf.Variable(tf.zeros(width), name="moving_mean", trainable=False)
                self.var = tf.Variable(tf.ones(width), name="moving_variance", trainable=False)

        def __call__(self, x, training):
            mean, var = self.mean, self.var
            if training:
                mean, var = tf.nn.moments(x, [0, 1, 2])
                self.mean.assign(0.9 * self.mean + 0.1 * mean)
                self.var.assign(0.9 * self.var + 0.1 * var)
            return tf.nn.batch_normalization(x, mean, var, self.beta, self.gamma, 1e-3)

    class Block(tf.Module):
        def __init__(self, width, name):
            super().__init__(name=name)
            with self.name_scope:
                self.one, self.two = Conv(width, width, "conv1"), Conv(width, width, "conv2")

        def __call__(self, x, training):
            return x + self.two(self.one(x, training), training)

    class Net(tf.Module):
        def __init__(self):
            super().__init__(name="net")
            with self.name_scope:
                # Attributes in an order that is not that of depth.
                self.z = Conv(3, 4, "stem")
                self.b, self.a = Block(4, "block2"), Block(4, "block1")

            @tf.function(input_signature=[])
            def decay():
                return 1e-2 * tf.reduce_sum(self.z.kernel**2)

            self.regularization_losses = [decay]

        @tf.function
        def __call__(self, x, training=False):
            x = self.z(x, training)
            x = self.b(self.a(x, training), training)
            return tf.reduce_mean(x, [1, 2])

    net = Net()
    for training in (True, False):
        spec = tf.TensorSpec((None, size, size, 3), tf.float32)
        net.__call__.get_concrete_function(spec, training=training)
    tf.saved_model.save(net, str(folder))
    return folder


def dense_net(folder: Path, *, backwards: bool = False) -> Path:
    """A module of two layers, one of them with a variable of its own and one below; it was traced
    for a batch of two besides, and reads its variables in another order in training.
    """
    import tensorflow as tf

    def variable(name, *shape):
        return tf.Variable(tf.ones(shape), name=f"net/{name}")

    class Net(tf.Module):
        def __init__(self):
            super().__init__(name="net")
            self.first = variable("layer_1/kernel", 4, 4)
            self.first_bias = variable("layer_1/bias", 4)
            self.scale = variable("layer_2/scale", 4)
            self.second = variable("layer_2/dense/kernel", 4, 4)

        @tf.function
        def __call__(self, x, training=False):
            more = tf.reduce_sum(self.second) if training else 0.0
            x = tf.nn.tanh(x @ self.first + self.first_bias)
            return (x * self.scale) @ self.second + more

    net = Net()
    traces = [(n, training) for n in (2, None) for training in (True, False)]
    for n, training in reversed(traces) if backwards else traces:
        net.__call__.get_concrete_function(tf.TensorSpec((n, 4), tf.float32), training=training)
    tf.saved_model.save(net, str(folder))
    return folder


def text(folder: Path) -> Path:
    """A text module: strings to vectors, by a vocabulary in an asset."""
    import tensorflow as tf

    words = folder.parent / "words.txt"
    words.write_text("the\ncat\nsat\ndog\n")
    table = tf.random.stateless_normal((5, 8), seed=(1, 2))

    class Text(tf.Module):
        def __init__(self):
            super().__init__(name="text")
            self.asset = tf.saved_model.Asset(str(words))
            self.table = tf.lookup.StaticVocabularyTable(
                tf.lookup.TextFileInitializer(
                    self.asset,
                    tf.string,
                    tf.lookup.TextFileIndex.WHOLE_LINE,
                    tf.int64,
                    tf.lookup.TextFileIndex.LINE_NUMBER,
                ),
                1,
            )
            with self.name_scope:
                self.embeddings = tf.Variable(table, name="embeddings")

        @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])
        def __call__(self, sentences):
            tokens = tf.strings.split(sentences)
            found = tf.ragged.map_flat_values(
                lambda t: tf.gather(self.embeddings, self.table.lookup(t)), tokens
            )
            return tf.math.divide_no_nan(
                tf.reduce_sum(found, 1), tf.cast(tokens.row_lengths(), tf.float32)[:, None]
            )

    tf.saved_model.save(Text(), str(folder))
    return folder


def encoder(folder: Path) -> Path:
    """A module like BERT: a dict of ids and masks in, a dict of outputs out, layers in a row."""
    import tensorflow as tf

    rng = np.random.default_rng(6)

    def variable(name, *shape):
        return tf.Variable(rng.normal(0, 0.3, shape), dtype=tf.float32, name=name)

    class Encoder(tf.Module):
        def __init__(self):
            super().__init__(name="encoder")
            self.words = variable("word_embeddings/embeddings", 20, 8)
            self.layers = [
                (
                    variable(f"transformer/layer_{i}/query/kernel", 8, 8),
                    variable(f"transformer/layer_{i}/output/kernel", 8, 8),
                )
                for i in range(3)
            ]

        @tf.function
        def __call__(self, inputs, training=False):
            mask = tf.cast(inputs["input_mask"], tf.float32)[..., None]
            x = tf.gather(self.words, inputs["input_word_ids"])
            for query, output in self.layers:
                x = x + tf.nn.tanh(x @ query) @ output
                if training:
                    x = tf.nn.dropout(x, 0.5)
            pooled = tf.reduce_sum(x * mask, 1) / tf.reduce_sum(mask, 1)
            return {"sequence_output": x, "pooled_output": pooled}

    module = Encoder()
    ids = {n: tf.TensorSpec((None, None), tf.int32, n) for n in ("input_word_ids", "input_mask")}
    for training in (True, False):
        module.__call__.get_concrete_function(ids, training=training)
    tf.saved_model.save(module, str(folder))
    return folder


def tokens(folder: Path) -> Path:
    """What goes before `encoder`: strings to ids and a mask, without variables."""
    import tensorflow as tf

    class Tokens(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])
        def __call__(self, sentences):
            words = tf.strings.split(sentences)
            ids = tf.strings.to_hash_bucket_fast(words.to_tensor(shape=(None, 6)), 20)
            mask = tf.sequence_mask(words.row_lengths(), 6, tf.int32)
            return {"input_word_ids": tf.cast(ids, tf.int32), "input_mask": mask}

    tf.saved_model.save(Tokens(), str(folder))
    return folder


def signature(folder: Path) -> Path:
    """A module of TensorFlow 1: a signature, and variables that no call can train."""
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default():
        x = v1.placeholder(tf.float32, (None, 6), name="x")
        kernel = v1.get_variable("scope/kernel", initializer=np.ones((6, 4), "float32") / 3)
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            signatures = {
                "default": v1.saved_model.predict_signature_def({"x": x}, {"default": x @ kernel})
            }
            builder = v1.saved_model.Builder(str(folder))
            builder.add_meta_graph_and_variables(session, [], signatures)
            builder.save()
    return folder


def export(folder: Path) -> Path:
    """What ``model.export`` of Keras 3 writes."""
    from conftest import residual

    model = residual("exported")
    for variable in model.weights:
        noise = np.random.default_rng(8).normal(0, 0.1, variable.shape)
        variable.assign(variable + np.abs(noise))
    model.export(folder, verbose=False)
    keras.utils.clear_session(free_memory=False)
    return folder
