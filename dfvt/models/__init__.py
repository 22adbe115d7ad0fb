"""The DFvT backbone and what mmdet needs to know of it."""

from dfvt.models.dfvt import DFvT

__all__ = ["DFvT"]
