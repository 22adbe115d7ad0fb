"""The DFvT backbone and what mmdet needs to know of it, and heads that do without waiting for the device."""

from dfvt.models.dfvt import DFvT
from dfvt.models.fast_roi import FastRoIExtractor, FastRoIHead
from dfvt.models.fast_rpn import FastRPNHead

__all__ = ["DFvT", "FastRPNHead", "FastRoIExtractor", "FastRoIHead"]
