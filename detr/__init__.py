"""DETR as a plain PyTorch library: images in, detections out."""

from detr.checkpoint import load, save
from detr.config import DetrConfig
from detr.detector import Detector
from detr.model import Detr
from detr.postprocess import Detections

__all__ = ["Detections", "Detector", "Detr", "DetrConfig", "load", "save"]
