"""Inference: one frame at a time, from sources to mask files."""

from inference.predictor import Predictor

__all__ = ["Predictor"]
