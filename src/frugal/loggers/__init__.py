"""Where a run's metrics go while it trains, and its record at the end: a CSV file, TensorBoard, MLflow, W&B."""
