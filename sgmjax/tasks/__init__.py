"""What is learnt: a score, a class, a VAE and a score in its latent space."""

from sgmjax.tasks.base import Generative, Task, Variables
from sgmjax.tasks.classifier import ClassifierTask
from sgmjax.tasks.features import FeatureTask
from sgmjax.tasks.latent import LatentTask
from sgmjax.tasks.score import ScoreTask
from sgmjax.tasks.vae import VAETask

__all__ = ["ClassifierTask", "FeatureTask", "Generative", "LatentTask", "ScoreTask", "Task", "VAETask", "Variables"]
