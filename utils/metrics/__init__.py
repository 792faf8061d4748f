"""Metrics over a split. Importing the package registers all of them.

All are functions of integer counts, such as those of one confusion matrix. Integers add up to the same whatever the
order, so figures depend neither on batches nor on processes. A config names further ones in "trainer.metrics"; to add
one, see `utils.metrics.base`.
"""

from utils.metrics.base import MetricName
from utils.metrics.confusion_matrix import ConfusionMatrix, Metrics
from utils.registry import import_submodules

__all__ = ["ConfusionMatrix", "MetricName", "Metrics"]

import_submodules(__name__)
