"""What is minimised: score matching (denoising, hybrid, annealed), denoising, LSGM, classification; time laws."""

from sgmjax.objectives._annealed_dsm import annealed_dsm, annealed_dsm_loss
from sgmjax.objectives._classifier import classifier, classifier_loss
from sgmjax.objectives._denoising import denoising, denoising_loss
from sgmjax.objectives._lsgm import LSGMLosses, cross_entropy_constant, lsgm, lsgm_losses, terminal_divergence
from sgmjax.objectives._score_matching import score_matching, score_matching_loss
from sgmjax.objectives.sigma_law import SigmaDraw, SigmaLaw, log_normal, log_uniform, of_process
from sgmjax.objectives.time_law import (
    Bins,
    Clock,
    EqualBins,
    Levels,
    TimeDraw,
    TimeLaw,
    WeightedLaw,
    importance,
    levels,
    lsgm_mode,
    uniform,
)
from sgmjax.objectives.weighting import WEIGHTINGS, hears

__all__ = [
    "WEIGHTINGS",
    "Bins",
    "Clock",
    "EqualBins",
    "LSGMLosses",
    "Levels",
    "SigmaDraw",
    "SigmaLaw",
    "TimeDraw",
    "TimeLaw",
    "WeightedLaw",
    "annealed_dsm",
    "annealed_dsm_loss",
    "classifier",
    "classifier_loss",
    "cross_entropy_constant",
    "denoising",
    "denoising_loss",
    "hears",
    "importance",
    "levels",
    "log_normal",
    "log_uniform",
    "lsgm",
    "lsgm_losses",
    "lsgm_mode",
    "of_process",
    "score_matching",
    "score_matching_loss",
    "terminal_divergence",
    "uniform",
]
