"""What a trained model is worth: accuracy, neighbours, probes, retrieval, robustness; predictions and features of images."""
