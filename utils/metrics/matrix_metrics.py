"""Metrics that follow from the confusion matrix, averaged over classes."""

from __future__ import annotations

from torch import Tensor

from utils.metrics.base import MatrixMetric
from utils.metrics.confusion_matrix import f1, iou, precision, recall
from utils.registry import METRICS


@METRICS.register("Mean_Accuracy")
@METRICS.register("Mean_Recall")
class MeanRecall(MatrixMetric):
    """Mean recall of the labelled classes; also called class accuracy."""

    def value(self, matrix: Tensor, in_mean: Tensor) -> Tensor:
        return recall(matrix)[in_mean].nanmean()


@METRICS.register("Mean_Precision")
class MeanPrecision(MatrixMetric):
    """Mean precision of the predicted classes."""

    def value(self, matrix: Tensor, in_mean: Tensor) -> Tensor:
        return precision(matrix)[in_mean].nanmean()


@METRICS.register("Mean_F1")
class MeanF1(MatrixMetric):
    """Mean F1 (also the Dice score) of the classes that occur."""

    def value(self, matrix: Tensor, in_mean: Tensor) -> Tensor:
        return f1(matrix)[in_mean].nanmean()


@METRICS.register("Frequency_Weighted_IoU")
class FrequencyWeightedIoU(MatrixMetric):
    """Mean IoU with each class weighted by its labelled pixels."""

    def value(self, matrix: Tensor, in_mean: Tensor) -> Tensor:
        pixels = matrix.sum(1) * in_mean
        return (pixels * iou(matrix).nan_to_num()).sum() / pixels.sum()
