"""What is minimised: denoising, hybrid and annealed score matching, a classifier's cross entropy; times."""

from sgmjax.objectives.annealed_dsm import annealed_dsm, annealed_dsm_loss
from sgmjax.objectives.classifier import classifier, classifier_loss
from sgmjax.objectives.score_matching import score_matching, score_matching_loss
from sgmjax.objectives.times import DiscreteTimes, Times, TimeSampler, importance, levels, uniform

__all__ = [
    "DiscreteTimes",
    "TimeSampler",
    "Times",
    "annealed_dsm",
    "annealed_dsm_loss",
    "classifier",
    "classifier_loss",
    "importance",
    "levels",
    "score_matching",
    "score_matching_loss",
    "uniform",
]
