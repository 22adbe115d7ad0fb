"""Data sets in COCO layout: made, downloaded, checked and loaded."""
