import keras
import pytest
from conftest import chain, classifier, residual

from finetune_keras import SelectionError, build, heads, select

FIRST = {"stem_conv/kernel", "stem_bn/gamma", "stem_bn/beta"}


def chosen(selector, model):
    return {u.path for u in select.resolve(model, selector)}


def everything(model):
    return chosen(select.everything(), model)


def built():
    return build(residual(), heads.Classification(3, hidden=[4]))


def test_up_to_is_a_node_and_its_ancestors_and_after_the_rest():
    model = residual()
    up = chosen(select.up_to("block1_conv1"), model)
    assert {p.split("/")[0] for p in up} == {"stem_conv", "stem_bn", "block1_conv1"}
    assert chosen(select.after("block1_conv1"), model) == everything(model) - up


def test_after_an_input_is_everything():
    model = built()
    inputs = [x.name for x in model.layers if isinstance(x, keras.layers.InputLayer)]
    assert chosen(select.after(inputs[0]), model) == everything(model)
    with pytest.raises(SelectionError, match="matches nothing"):
        select.resolve(model, select.up_to(inputs[0]))


def test_up_to_a_layer_without_weights_takes_the_whole_residual():
    tops = {p.split("/")[0] for p in chosen(select.up_to("block1_out"), residual())}
    assert tops == {"stem_conv", "stem_bn", "block1_conv1", "block1_bn", "block1_conv2"}


def test_names_inside_a_nested_backbone_are_found():
    model = built()
    assert all(p.startswith("residual/") for p in chosen(select.up_to("block2_out"), model))
    assert chosen(select.after("block2_out"), model) == chosen(select.head(), model)
    assert chosen(select.up_to("residual"), model) == chosen(select.backbone(), model)


def test_head_and_backbone_share_out_the_model():
    for model in (built(), classifier(), chain()):
        head, body = chosen(select.head(), model), chosen(select.backbone(), model)
        assert head
        assert body
        assert not head & body
        assert head | body == everything(model)


@pytest.mark.parametrize("n", [0, 2, 4, 9])
def test_first_counts_as_keras_does(n):
    model = residual()
    expected = {id(w) for layer in model.layers[:n] for w in layer.weights}
    assert {id(u.variable) for u in select.resolve(model, select.first(n))} == expected


def test_first_of_layers_without_variables_is_an_error():
    with pytest.raises(SelectionError, match="matches nothing"):
        select.resolve(residual(), select.first(1))  # the input


def test_first_and_last_of_a_built_model_count_backbone_then_head():
    inner = residual()
    model = build(inner, heads.Classification(3, hidden=[4]))
    ids = {id(u.variable) for u in select.resolve(model, select.first(4))}
    assert ids == {id(w) for layer in inner.layers[:4] for w in layer.weights}
    assert chosen(select.last(1), model) == {"ftk_head_output/kernel", "ftk_head_output/bias"}
    assert chosen(select.last(0), model) == set()
    with pytest.raises(SelectionError, match=f"has {len(inner.layers)} layers"):
        select.resolve(model, select.first(len(inner.layers) + 1))


def test_blocks_count_in_depth_order_without_the_head():
    model = built()
    assert chosen(select.blocks(slice(-1, None)), model) == {
        p for p in everything(model) if p.startswith("residual/block2")
    }
    assert chosen(select.blocks(0), model) == chosen(select.up_to("stem_relu"), model)
    with pytest.raises(SelectionError, match="has 3 blocks"):
        select.resolve(model, select.blocks(slice(7, 9)))


def test_norms_biases_types_names_and_where():
    model = residual()
    assert chosen(select.norms(), model) == {p for p in everything(model) if "_bn/" in p}
    assert "stem_bn/beta" in chosen(select.biases(), model)
    assert "block1_conv1/bias" in chosen(select.biases(), model)
    assert chosen(select.named(r"short/kernel"), model) == {"block2_short/kernel"}
    convs = chosen(select.of_type(keras.layers.Conv2D), model)
    assert convs == everything(model) - chosen(select.norms(), model)
    big = select.where(lambda path, layer, v: v.shape[-1] == 8 and layer.name == "stem_conv")
    assert chosen(big, model) == {"stem_conv/kernel"}


def test_of_type_reaches_into_layers_that_hold_layers():
    x = keras.Input((5, 8))
    model = keras.Model(x, keras.layers.MultiHeadAttention(2, 4, name="mha")(x, x))
    found = chosen(select.of_type(keras.layers.MultiHeadAttention), model)
    assert found == everything(model)


def test_selectors_combine():
    model = residual()
    a, b = select.blocks(0), select.norms()
    assert chosen(a | b, model) == chosen(a, model) | chosen(b, model)
    assert chosen(a & b, model) == chosen(a, model) & chosen(b, model)
    assert chosen(~a, model) == everything(model) - chosen(a, model)
    assert chosen(~(a | b) & ~a, model) == everything(model) - chosen(a | b, model)
    assert repr(~(a | b) & a) == ("~(select.blocks(0) | select.norms()) & select.blocks(0)")


def test_nothing_on_purpose_is_no_error():
    assert chosen(select.nothing(), residual()) == set()
    assert chosen(~select.everything(), residual()) == set()


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        (lambda: select.up_to("block1_ou"), "no layer 'block1_ou'.*did you mean 'block1_out'"),
        (lambda: select.after("conv9"), "no layer 'conv9'"),
        (lambda: select.named("blck1"), "matches no variable of 'residual'.*did you mean"),
        (lambda: ~select.named("typo"), "matches no variable"),
        (lambda: select.of_type(keras.layers.LSTM), "LSTM.*matches no layer"),
        (lambda: select.norms() & select.named("short"), "matches nothing in the model 'residual'"),
        (lambda: select.up_to("stem_conv") & select.named("block2"), "matches nothing"),
        (lambda: select.of_type(keras.layers.ReLU), "matches nothing"),
        (lambda: select.first(-1), "0 or more; given -1"),
        (lambda: select.first(1.5), "given 1.5"),
        (lambda: select.named("("), "not a regular expression"),
        (lambda: select.head(), "finds no head"),
        (lambda: select.where(3), "takes a function"),
        (lambda: select.where(lambda path: True), r"function of \(path, layer, variable\).*raised"),
        (lambda: select.blocks(slice("a", None)), "takes a slice or a number"),
        (lambda: select.blocks(slice(None, None, 0)), "takes a slice or a number"),
        (lambda: select.blocks("last"), "given 'last'"),
    ],
)
def test_what_matches_nothing_is_an_error(selector, message):
    with pytest.raises(SelectionError, match=message):
        select.resolve(residual(), selector())


def test_a_string_in_place_of_a_selector_names_the_fix():
    with pytest.raises(TypeError, match=r"expected a selector such as select.backbone\(\)"):
        select.resolve(residual(), "backbone")
    with pytest.raises(TypeError, match=r"expected a keras.Model; given a Selector"):
        select.resolve(select.norms(), residual())
    with pytest.raises(TypeError, match=r"Did you mean select.named\('conv'\)"):
        select.norms() | "conv"


def test_an_ambiguous_name_asks_for_a_path():
    def part(name):
        inputs = keras.Input((4,))
        return keras.Model(inputs, keras.layers.Dense(4, name="d")(inputs), name=name)

    inputs = keras.Input((4,))
    model = keras.Model(inputs, part("two")(part("one")(inputs)))
    with pytest.raises(SelectionError, match="'one/d', 'two/d'"):
        select.resolve(model, select.up_to("d"))
    assert chosen(select.up_to("one/d"), model) == {"one/d/kernel", "one/d/bias"}
    assert chosen(select.after("one/d"), model) == {"two/d/kernel", "two/d/bias"}
