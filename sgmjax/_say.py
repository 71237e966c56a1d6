"""One way to tell something to whoever watches a run."""

from __future__ import annotations

import jax


def say(text: str) -> None:
    """Prints a message of the run, once for all processes."""
    if jax.process_index() == 0:
        print(text, flush=True)
