"""What is minimised: denoising and hybrid score matching, weightings, and how times are drawn."""

from sgmjax.objectives.score_matching import score_matching, score_matching_loss
from sgmjax.objectives.times import TimeSampler, importance, uniform

__all__ = ["TimeSampler", "importance", "score_matching", "score_matching_loss", "uniform"]
