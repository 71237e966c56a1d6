"""How far samples are from data, and data from each other: Frechet and sliced Wasserstein distances, neighbours."""

from sgmjax.metrics.frechet import Moments, Statistics, frechet_distance, pixel_frechet, statistics
from sgmjax.metrics.neighbours import Memorisation, Neighbours, memorisation, nearest, picture_rows
from sgmjax.metrics.pairwise import DistanceBounds, LargestPair, distance_bounds, largest_pair
from sgmjax.metrics.sliced import sliced_wasserstein

__all__ = [
    "DistanceBounds",
    "LargestPair",
    "Memorisation",
    "Moments",
    "Neighbours",
    "Statistics",
    "distance_bounds",
    "frechet_distance",
    "largest_pair",
    "memorisation",
    "nearest",
    "picture_rows",
    "pixel_frechet",
    "sliced_wasserstein",
    "statistics",
]
