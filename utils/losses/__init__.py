"""Losses. Importing the package registers all of them."""

from utils.registry import import_submodules

import_submodules(__name__)
