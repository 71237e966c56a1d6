"""How far samples are from data, and data from each other: distances in features, neighbours, and the features."""

from sgmjax.metrics._inception_score import InceptionScore, inception_score
from sgmjax.metrics.frechet import Moments, Statistics, frechet_distance, pixel_frechet, statistics
from sgmjax.metrics.inception import InceptionOutput, InceptionV3, inception_params, preprocess
from sgmjax.metrics.kernel import KID, kernel_distance, kid, kid_blocks
from sgmjax.metrics.manifold import DensityCoverage, PrecisionRecall, density_coverage, precision_recall
from sgmjax.metrics.neighbours import Memorisation, Neighbours, memorisation, nearest, picture_rows
from sgmjax.metrics.pairwise import DistanceBounds, LargestPair, distance_bounds, largest_pair
from sgmjax.metrics.sliced import monge_inception_distance, sliced_wasserstein

__all__ = [
    "KID", "DensityCoverage", "DistanceBounds", "InceptionOutput", "InceptionScore", "InceptionV3",
    "LargestPair", "Memorisation", "Moments", "Neighbours", "PrecisionRecall", "Statistics", "density_coverage",
    "distance_bounds", "frechet_distance", "inception_params", "inception_score", "kernel_distance", "kid",
    "kid_blocks", "largest_pair", "memorisation", "monge_inception_distance", "nearest", "picture_rows",
    "pixel_frechet", "precision_recall", "preprocess", "sliced_wasserstein", "statistics",
]  # fmt: skip
