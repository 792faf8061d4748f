"""Datasets and transforms. Importing the package registers all of them."""

from utils.registry import import_submodules

import_submodules("dataloader.datasets")
import_submodules("dataloader.transforms")
