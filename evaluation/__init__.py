"""Scores of video object segmentation: the official numbers, an audit of the input, analyses and a report."""

from evaluation.evaluator import Evaluation, evaluate
from evaluation.metrics import contour_accuracy, region_similarity

__all__ = ["Evaluation", "contour_accuracy", "evaluate", "region_similarity"]
