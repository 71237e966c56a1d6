"""How far samples are from data: Frechet distances and the sliced Wasserstein distance. NumPy only."""

from sgmjax.metrics.frechet import Moments, Statistics, frechet_distance, pixel_frechet, statistics
from sgmjax.metrics.sliced import sliced_wasserstein

__all__ = ["Moments", "Statistics", "frechet_distance", "pixel_frechet", "sliced_wasserstein", "statistics"]
