"""Experiment tracking: MLflow runs, and the lineage that they are tagged with."""
