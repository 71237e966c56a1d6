"""Whether a run is long enough for its warmup and for the average of its parameters."""

from __future__ import annotations

from sgmjax.config import Config, OptimizerConfig

_MOST = 0.05  # share of the initial parameters in the average at the end that nobody would notice


def outlasting(config: Config) -> list[str]:
    """One line for each optimiser section whose warmup or average outlasts the steps that it takes.

    The average is said to where it ends with more than a twentieth of the parameters as they were initialised, whose
    weight is ema_decay^steps: where the run is shorter than three times the 1 / (1 - ema_decay) steps that it reaches
    back. With `ema_warmup` it reaches back over a share of the steps taken, and fits any run.
    """
    lines = (_outlasting(name, optimizer, steps) for name, optimizer, steps in _sections(config))
    return [line for line in lines if line]


def _sections(config: Config) -> list[tuple[str, OptimizerConfig, int]]:
    """Name, settings and number of steps of each optimiser of the run."""
    steps, latent = config.train.steps, config.latent
    if config.vae is None:
        return [("optimizer", config.optimizer, steps)]
    both = steps - latent.vae_steps
    found = [("latent.vae_optimizer", latent.vae_optimizer, latent.vae_steps), ("optimizer", config.optimizer, both)]
    if latent.train_vae:
        found.append(("latent.vae_finetune", latent.vae_finetune, both))
    return [section for section in found if section[2] > 0]


def _outlasting(name: str, optimizer: OptimizerConfig, steps: int) -> str | None:
    wrong, fixes = [], []
    if optimizer.warmup_steps >= steps:
        wrong.append(f"its warmup takes {optimizer.warmup_steps:,}")
        fixes.append(f"{name}.warmup_steps={steps // 10}")
    share = optimizer.ema_decay**steps
    if share > _MOST and not optimizer.ema_warmup:
        wrong.append(
            f"the average of the parameters ({name}.ema_decay={optimizer.ema_decay:g}) still holds {100 * share:.0f}% "
            "of the network as it was initialised"
        )
        fixes.append(f"{name}.ema_decay={max(0.0, 1 - 10 / steps):.6g} or {name}.ema_warmup=True")
    if not wrong:
        return None
    what, fix = " and ".join(wrong), " and ".join(fixes)
    return f"note: {name} ends after {steps:,} steps, and {what}; set {fix}, or train longer"
