"""What is published of the backbones that have a name."""

import json
import socket

import keras
import keras_hub
import pytest

import finetune_keras as ftk
from finetune_keras.backbones import applications, letters


def test_every_name_is_listed_and_taken():
    listed = ftk.list_backbones()
    assert set(applications.names()) <= set(listed.names)
    assert set(keras_hub.models.Backbone.presets) <= set(listed.names)
    assert listed.names[0] == "letters_resnet"
    assert len(listed.names) == len(set(listed.names)) == len(listed)
    for row in listed:
        assert row.parameters > 0
        assert row.source in ("finetune_keras", "keras.applications", "KerasHub")


# The numbers are the same on all backends; JAX compiles long.
few = () if keras.backend.backend() == "tensorflow" else pytest.mark.slow


@pytest.mark.parametrize("name", ["mobilenetv3small", pytest.param("mobilenetv2", marks=few)])
def test_numbers_are_those_of_the_network(name):
    (row,) = (r for r in ftk.list_backbones(name) if r.name == name)
    built = applications.names()[name](weights=None, include_top=False)
    assert row.parameters == built.count_params()
    assert row.input_size == (224, 224)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(applications.names()))
def test_numbers_of_every_network(name):
    (row,) = (r for r in ftk.list_backbones(name) if r.name == name)
    made = applications.names()[name](weights=None, include_top=False)
    assert row.parameters == made.count_params()
    keras.backend.clear_session()


def test_the_network_that_ships():
    row = ftk.list_backbones("letters")[0]
    assert row.parameters == ftk.backbone("letters_resnet").network.count_params()
    assert row.input_size == letters.IMAGE_SIZE
    assert row.download_mb == 0


def test_all_of_keras_have_an_accuracy():
    for row in ftk.list_backbones():
        published = row.source == "keras.applications"
        assert (row.top1 is not None) == published
        assert not published or 60 < row.top1 < (row.top5 or 100)
    assert ftk.list_backbones("resnet50")[0].top1 == 74.9


def test_what_presets_take():
    rows = {r.name: r for r in ftk.list_backbones()}
    assert rows["bert_tiny_en_uncased"].inputs == "text"
    assert rows["resnet_50_imagenet"].inputs == "image"
    assert rows["resnet_50_imagenet"].input_size == (224, 224)
    assert "audio" in rows["whisper_tiny_en"].inputs
    assert rows["bert_tiny_en_uncased"].download_mb == pytest.approx(17.5, abs=0.1)


@pytest.mark.parametrize(
    ("pattern", "some"),
    [
        ("resnet50", ["resnet50", "resnet50v2"]),
        ("ResNet-50*", ["resnet50", "resnet50v2", "resnet_50_imagenet"]),
        ("BERT_tiny*", ["bert_tiny_en_uncased", "bert_tiny_en_uncased_sst2"]),
        ("efficientnetb?", [f"efficientnetb{i}" for i in range(8)]),
    ],
)
def test_patterns(pattern, some):
    assert set(some) <= set(ftk.list_backbones(pattern).names)
    assert "vgg16" not in ftk.list_backbones(pattern).names


def test_a_pattern_without_a_star_is_a_part_of_the_name():
    assert "deberta_v3_base_en" in ftk.list_backbones("bert").names
    assert "deberta_v3_base_en" not in ftk.list_backbones("bert*").names


def test_nothing_that_fits():
    with pytest.raises(ValueError, match=r"no backbone's name fits 'resnet51'; did you mean 'resn"):
        ftk.list_backbones("resnet51")
    with pytest.raises(TypeError, match="takes a pattern"):
        ftk.list_backbones(50)


def test_as_text_html_and_values():
    listed = ftk.list_backbones("vgg1?")
    text = str(listed)
    assert text == repr(listed)
    head, _, first, second = text.splitlines()
    assert head.split()[:3] == ["name", "inputs", "parameters"]
    assert first.split()[:3] == ["vgg16", "image", "14,714,688"]
    assert "71.3 %" in second
    assert listed._repr_html_().count("<tr>") == 3
    values = json.loads(json.dumps(listed.to_dict()))
    assert values["vgg19"]["input_size"] == [224, 224]
    assert [r.name for r in listed[:1]] == ["vgg16"]


def test_without_the_network(monkeypatch):
    def connect(*_):
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket.socket, "connect", connect)
    ftk.backbones.listing._rows.cache_clear()
    assert len(ftk.list_backbones()) > 400
