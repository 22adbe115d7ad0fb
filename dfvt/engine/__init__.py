"""Training, evaluation and inference of mmdet detectors. Knows neither Ray nor MLflow: it takes callbacks."""
