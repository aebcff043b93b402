"""Writes `finetune_keras/backbones/applications.json`: what `list_backbones` says of the networks
of ``keras.applications``.

    python scripts/applications_table.py            # all; several minutes, 3 GB of memory
    python scripts/applications_table.py vgg16 ...  # these alone, the others stay as they are

Each line that it prints says where its numbers come from. Parameters and input sizes are asked of
Keras, by building each network with random weights: without its top for the parameters, with it for
the size of the images it was made for. Accuracies are those that Keras publishes, copied here.
"""

import argparse
import gc
import json
from pathlib import Path

import keras

from finetune_keras.backbones import applications

FILE = Path(__file__).parents[1] / "finetune_keras" / "backbones" / "applications.json"

# Accuracy on the validation images of ImageNet in percent, top-1 and top-5, as published.
PAGE = "https://keras.io/api/applications/"
PUBLISHED = {
    "xception": (79.0, 94.5),
    "vgg16": (71.3, 90.1),
    "vgg19": (71.3, 90.0),
    "resnet50": (74.9, 92.1),
    "resnet50v2": (76.0, 93.0),
    "resnet101": (76.4, 92.8),
    "resnet101v2": (77.2, 93.8),
    "resnet152": (76.6, 93.1),
    "resnet152v2": (78.0, 94.2),
    "inceptionv3": (77.9, 93.7),
    "inceptionresnetv2": (80.3, 95.3),
    "mobilenet": (70.4, 89.5),
    "mobilenetv2": (71.3, 90.1),
    "densenet121": (75.0, 92.3),
    "densenet169": (76.2, 93.2),
    "densenet201": (77.3, 93.6),
    "nasnetmobile": (74.4, 91.9),
    "nasnetlarge": (82.5, 96.0),
    "efficientnetb0": (77.1, 93.3),
    "efficientnetb1": (79.1, 94.4),
    "efficientnetb2": (80.1, 94.9),
    "efficientnetb3": (81.6, 95.7),
    "efficientnetb4": (82.9, 96.4),
    "efficientnetb5": (83.6, 96.7),
    "efficientnetb6": (84.0, 96.8),
    "efficientnetb7": (84.3, 97.0),
    "efficientnetv2b0": (78.7, 94.3),
    "efficientnetv2b1": (79.8, 95.0),
    "efficientnetv2b2": (80.5, 95.1),
    "efficientnetv2b3": (82.0, 95.8),
    "efficientnetv2s": (83.9, 96.7),
    "efficientnetv2m": (85.3, 97.4),
    "efficientnetv2l": (85.7, 97.5),
    "convnexttiny": (81.3, None),
    "convnextsmall": (82.3, None),
    "convnextbase": (85.3, None),
    "convnextlarge": (86.3, None),
    "convnextxlarge": (86.7, None),
}
# Not on that page, but in the docstring of the function, whose table has no top-5.
DOCSTRING = "the docstring of keras.applications.MobileNetV3Large"
PUBLISHED_IN_DOCSTRING = {"mobilenetv3large": (75.6, None), "mobilenetv3small": (68.1, None)}


def row(name: str) -> dict:
    """One network; built twice."""
    function = applications.names()[name]
    whole = function(weights=None)
    # MobileNetV3 takes any size; its docstring's table is of 224.
    height, width = (n or 224 for n in whole.input_shape[1:3])
    del whole
    gc.collect()
    parameters = function(weights=None, include_top=False).count_params()
    top1, top5 = {**PUBLISHED, **PUBLISHED_IN_DOCSTRING}.get(name, (None, None))
    return {"parameters": parameters, "input_size": [height, width], "top1": top1, "top5": top5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="of these networks; all if none is given")
    args = parser.parse_args()
    old = json.loads(FILE.read_text())["networks"] if FILE.exists() else {}
    for name in args.names or applications.names():
        old[name] = row(name)
        keras.backend.clear_session()
        where = DOCSTRING if name in PUBLISHED_IN_DOCSTRING else PAGE
        print(
            f"{name}: {old[name]['parameters']:,} parameters and {old[name]['input_size']} pixels, "
            f"from Keras {keras.__version__}; top-1 {old[name]['top1']} %, top-5 "
            f"{old[name]['top5']} %, from {where}",
            flush=True,
        )
        text = {
            "parameters": "of include_top=False, counted in the network that Keras builds",
            "input_size": "of include_top=True, as Keras builds it",
            "top1, top5": f"{PAGE}; of MobileNetV3, {DOCSTRING}",
            "written_by": f"scripts/applications_table.py, with Keras {keras.__version__}",
        }
        networks = {n: old[n] for n in applications.names() if n in old}
        lines = ",\n".join(f"  {json.dumps(n)}: {json.dumps(r)}" for n, r in networks.items())
        whole = f'{{"sources": {json.dumps(text, indent=2)},\n"networks": {{\n{lines}\n}}}}\n'
        part = FILE.with_suffix(".part")
        part.write_text(whole)
        part.replace(FILE)


if __name__ == "__main__":
    main()
