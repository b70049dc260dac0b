"""Scores of video object segmentation: the official numbers, an audit of the input, analyses and a report."""

from evaluation.metrics import contour_accuracy, region_similarity

__all__ = ["contour_accuracy", "region_similarity"]
