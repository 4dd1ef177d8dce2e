"""vitscale: pretrain Vision Transformers from one YAML recipe.  Importing this loads no torch."""

__version__ = "0.1.0"
