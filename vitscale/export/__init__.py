"""A trained model in the forms that other programs read, each held against ourselves; and averages of several checkpoints."""

FORMATS = ("transformers", "timm", "safetensors", "onnx", "torch-export")
