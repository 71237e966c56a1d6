"""What a function predicts, written on it where it is made, so that it is not taken for another.

eps_fn(z, t) and score_fn(z, t) take the same arguments and, in many processes, give arrays of the same shape; an eps
belongs to the kernel (hybrid or denoising score matching) that it was trained with. Functions that say nothing are
taken at their word.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from sgmjax._inputs import InputError

Kind = Literal["eps", "score"]
_WORDS = {"eps": "the noise eps", "score": "the score"}


def says(**what: Any) -> Callable[[Any], Any]:
    """Decorator: sets attributes of a function, `kind`, `matching` and `hears`."""

    def mark(function):
        for name, value in what.items():
            setattr(function, name, value)
        return function

    return mark


def hearing(score_fn: Any) -> Literal["eps", "drift"]:
    """What a score function says that its training heard, see `score.consistent`; "eps" where it says nothing."""
    return getattr(score_fn, "hears", "eps")


def check_kind(function: Any, wanted: Kind) -> None:
    """Checks that a function does not say that it predicts something else.

    Raises:
        InputError: an eps_fn in place of a score_fn, or the other way round.
    """
    kind = getattr(function, "kind", wanted)
    if kind != wanted:
        fix = "score.score_from_eps makes a score of it" if wanted == "score" else "give the eps_fn that it was made of"
        raise InputError(f"{wanted}_fn: the function that was given predicts {_WORDS[kind]}; {fix}")


def check_eps(eps: Any, z: Any, num_noised: int) -> None:
    """Checks that what an eps_fn returned for states z has their shape, with the noised variables alone.

    Another shape could broadcast against the noise, and the loss would be of other examples' noise.

    Raises:
        InputError: it has not.
    """
    wanted = (z.shape[0], num_noised, *z.shape[2:])
    if eps.shape != wanted:
        raise InputError(
            f"eps_fn: returned {eps.shape} for states {z.shape}; it must return {wanted}, (batch, noised variables, "
            "*event)"
        )


def checked_score(score_fn: Any) -> Any:
    """A score function that refuses to return another shape than the state's, which would be broadcast.

    Raises:
        InputError: an eps_fn; when it is called, a score of another shape than the state.
    """
    check_kind(score_fn, "score")

    @says(kind="score", hears=hearing(score_fn))
    def checked(z, t):
        found = score_fn(z, t)
        if np.shape(found) != np.shape(z):
            raise InputError(
                f"score_fn returned {np.shape(found)} for a state {np.shape(z)}: a score has the state's shape, zero "
                "for variables without noise"
            )
        return found

    return checked


def check_matching(eps_fn: Any, matching: str) -> None:
    """Checks that an eps_fn does not say that it is of another kernel.

    Raises:
        InputError: one of hybrid score matching where denoising score matching is done, or the other way round.
    """
    said = getattr(eps_fn, "matching", matching)
    if said != matching:
        raise InputError(
            f"matching: the eps_fn was made for matching={said!r}, and here it is {matching!r}; give both the same, as "
            "ScoreModel does"
        )
