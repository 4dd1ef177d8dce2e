"""The web page of all runs under a folder."""

from vitscale.observe.dashboard.server import serve

__all__ = ["serve"]
