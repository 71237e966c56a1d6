"""How far samples are from data, and data from each other: Frechet and sliced Wasserstein distances, largest pair."""

from sgmjax.metrics.frechet import Moments, Statistics, frechet_distance, pixel_frechet, statistics
from sgmjax.metrics.pairwise import DistanceBounds, LargestPair, distance_bounds, largest_pair
from sgmjax.metrics.sliced import sliced_wasserstein

__all__ = [
    "DistanceBounds",
    "LargestPair",
    "Moments",
    "Statistics",
    "distance_bounds",
    "frechet_distance",
    "largest_pair",
    "pixel_frechet",
    "sliced_wasserstein",
    "statistics",
]
