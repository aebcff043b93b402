"""What became of each weight on the way from a source to a backbone."""

from __future__ import annotations

import dataclasses

__all__ = ["Edits", "Loaded"]

_SHOWN = 4  # paths of each kind in the text


@dataclasses.dataclass(frozen=True)
class Edits:
    """What surgery did to a network's weights, by their paths in the network.

    Attributes:
        adapted: computed from the source's, for another number of channels.
        random: new ones.
        skipped: the source's that found no place.
    """

    adapted: tuple[str, ...] = ()
    random: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    def __str__(self) -> str:
        return _text(self, ("adapted", "random", "skipped"))

    def then(self, later: Edits) -> Edits:
        """Both, one after the other."""
        new = {*later.random, *later.adapted}
        return Edits(
            (*(p for p in self.adapted if p not in new), *later.adapted),
            (*(p for p in self.random if p not in new), *later.random),
            tuple(dict.fromkeys((*self.skipped, *later.skipped))),
        )


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Where the weights of a backbone come from, by their paths in its network.

    Attributes:
        loaded: as the source has them.
        adapted: computed from the source's, as for another number of channels.
        random: at random; nothing pretrained is in them.
        skipped: weights of the source that found no place.

    Examples:
        >>> print(Loaded(("conv/bias", "conv/kernel"), random=("stem/kernel",)))
        2 loaded, 1 random ('stem/kernel')
    """

    loaded: tuple[str, ...] = ()
    adapted: tuple[str, ...] = ()
    random: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    def __str__(self) -> str:
        loaded = [f"{len(self.loaded)} loaded"] if self.loaded else []
        rest = _text(self, ("adapted", "random", "skipped"))
        return ", ".join([*loaded, *([rest] if rest else [])]) or "no weights"


def _text(record: Edits | Loaded, kinds: tuple[str, ...]) -> str:
    parts = []
    for kind in kinds:
        paths = getattr(record, kind)
        if paths:
            more = ", ..." if len(paths) > _SHOWN else ""
            shown = ", ".join(map(repr, paths[:_SHOWN]))
            parts.append(f"{len(paths)} {kind} ({shown}{more})")
    return ", ".join(parts)
