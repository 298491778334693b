"""What the fork server does once, so that no job has to: the imports, Hydra's plugins, the list of packages."""

import hydra.main  # noqa: F401
import sklearn.datasets  # noqa: F401
import torch.profiler  # noqa: F401

import frugal.evaluate
import frugal.train  # noqa: F401
from frugal import compose, manifest

compose.prepare_hydra()
manifest.packages()
