"""Checkpoints: written whole or not at all, verified before they are believed, and held by one attempt at a time."""
