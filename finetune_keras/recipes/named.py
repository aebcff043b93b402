"""The recipes. Each is a function of a `Task` that gives phases."""

from __future__ import annotations

from collections.abc import Iterable

from finetune_keras import select
from finetune_keras.recipes.measure import gradient_norms, probe_losses
from finetune_keras.recipes.phase import Phase
from finetune_keras.recipes.task import Task

__all__ = ["auto", "full", "gradual", "linear_probe", "lp_ft", "surgical"]

_ENOUGH = 0.5  # of the largest relative gradient
_SERVES = 1 / 3  # of what features of all stages do


def linear_probe(task: Task) -> Iterable[Phase]:
    """The head alone, on features that are computed once.

    Fast, and right where the new images are like those of the pretraining or there are few.
    """
    return [task.probe()]


def full(task: Task) -> Iterable[Phase]:
    """A probe, then everything at one rate, normalisation layers and their statistics too.

    For many examples that are unlike those of the pretraining.
    """
    everything = select.everything()
    return [task.probe(), task.phase("all", everything, norms=True, layer_decay=None)]


def lp_ft(task: Task) -> Iterable[Phase]:
    """A probe, then everything but normalisation, at rates that fall with depth.

    The head is at its optimum before the backbone moves, so that features are not distorted by
    the gradients of a random head (Kumar et al. 2022, arXiv:2202.10054).
    """
    return [task.probe(), task.phase("all", select.everything())]


def gradual(task: Task) -> Iterable[Phase]:
    """A probe, then the last quarter of the blocks, the last half, and so on to everything.

    As Howard and Ruder 2018 (ULMFiT, arXiv:1801.06146, section 3.3) thaw, from the most specific
    layers to the most general. Early phases are cheap, since what is frozen is computed once.
    """
    yield task.probe()
    stages = task.stages[::-1]
    each = max(1, task.plan.epochs // max(len(stages), 1))
    left = task.plan.epochs
    for i, stage in enumerate(stages):
        last = i == len(stages) - 1
        epochs = left if last else min(each, left)
        if epochs < 1:
            return
        left -= epochs
        top = select.blocks(slice(stage.start, None)) | select.head()
        name = "all" if last else f"last {len(task.blocks) - stage.start} of {len(task.blocks)}"
        yield task.phase(name, select.everything() if last else top, epochs=epochs)


def surgical(task: Task) -> Iterable[Phase]:
    """A probe, then only the blocks with the largest gradients relative to their weights.

    For images that differ from those of the pretraining in one way, such as noise or colours: the
    blocks that this concerns learn, and the others keep what they know (Lee et al. 2022,
    arXiv:2210.11466).
    """
    yield task.probe()
    norms = task.measured("gradient norms", gradient_norms)
    chosen = [i for i, norm in enumerate(norms) if norm >= _ENOUGH * max(norms) > 0]
    if not chosen:
        task.say("surgical: no block has a gradient, so the probe is the end")
        return
    names = ", ".join(repr(task.blocks[i].name) for i in chosen)
    told = ", ".join(f"{norm:.2g}" for norm in norms)
    task.say(f"surgical: relative gradients by block are {told}; {names} learn")
    learn = select.head()
    for i in chosen:
        learn = learn | select.blocks(i)
    yield task.phase("surgical", learn, layer_decay=None)


def auto(task: Task) -> Iterable[Phase]:
    """A probe at each stage, then all that comes after the first one, if that serves the new task.

    The features of the first quarter, such as edges and colours, are the most general (Yosinski et
    al. 2014, arXiv:1411.1792), and the most costly; there they are computed once. How far they
    serve is measured: by the probe on them, on the way from the loss without any features to that
    of the best probe. Where they do not, or the stages cannot be compared, everything learns.
    """
    yield task.probe()
    losses = task.measured("probe losses", probe_losses)
    if losses is None or len(losses) < 3:
        task.say("auto: the depths cannot be compared by solved probes, so everything is thawed")
        yield task.phase("all", select.everything())
        return
    chance, *losses = losses
    ends = [task.blocks[stage.stop - 1].name for stage in task.stages]
    told = ", ".join(f"{x:.3g} after {name!r}" for x, name in zip(losses, ends, strict=True))
    told = f"auto: probes have the loss {told}, and {chance:.3g} without features"
    way = chance - min(losses)
    share = (chance - losses[0]) / way if way > 0 else 0.0
    if share < _SERVES:
        task.say(f"{told}: the first come {max(share, 0):.0%} of the way, so everything is thawed")
        yield task.phase("all", select.everything())
        return
    task.say(f"{told}: the first come {share:.0%} of the way and stay; thawed after {ends[0]!r}")
    top = select.blocks(slice(task.stages[1].start, None)) | select.head()
    yield task.phase(f"after {ends[0]}", top)
