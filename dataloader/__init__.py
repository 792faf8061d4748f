"""Datasets and transforms. Importing the package registers all of them."""

from utils.registry import import_submodules

import_submodules(f"{__name__}.datasets")
import_submodules(f"{__name__}.transforms")
