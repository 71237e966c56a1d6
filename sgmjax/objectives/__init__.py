"""What is minimised: denoising, hybrid and annealed score matching, LSGM, a classifier's cross entropy; times."""

from sgmjax.objectives.annealed_dsm import annealed_dsm, annealed_dsm_loss
from sgmjax.objectives.classifier import classifier, classifier_loss
from sgmjax.objectives.lsgm import LSGMLosses, cross_entropy_constant, lsgm, lsgm_losses, terminal_divergence
from sgmjax.objectives.lsgm_weighting import LatentTimes, latent_times
from sgmjax.objectives.score_matching import score_matching, score_matching_loss
from sgmjax.objectives.times import DiscreteTimes, Times, TimeSampler, importance, levels, uniform

__all__ = [
    "DiscreteTimes",
    "LSGMLosses",
    "LatentTimes",
    "TimeSampler",
    "Times",
    "annealed_dsm",
    "annealed_dsm_loss",
    "classifier",
    "classifier_loss",
    "cross_entropy_constant",
    "importance",
    "latent_times",
    "levels",
    "lsgm",
    "lsgm_losses",
    "score_matching",
    "score_matching_loss",
    "terminal_divergence",
    "uniform",
]
