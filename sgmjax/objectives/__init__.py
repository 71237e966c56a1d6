"""What is minimised: denoising and hybrid score matching, a classifier's cross entropy, and how times are drawn."""

from sgmjax.objectives.classifier import classifier, classifier_loss
from sgmjax.objectives.score_matching import score_matching, score_matching_loss
from sgmjax.objectives.times import TimeSampler, importance, uniform

__all__ = [
    "TimeSampler",
    "classifier",
    "classifier_loss",
    "importance",
    "score_matching",
    "score_matching_loss",
    "uniform",
]
