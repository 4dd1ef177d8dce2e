"""The web page of all runs under a folder."""

from pathlib import Path


def serve(runs: Path, *, host: str = "127.0.0.1", port: int = 8420, token: str | None = None) -> None:
    """Serve the page until interrupted; prints its address.  See server.py, which is loaded here alone: a report needs no server."""
    from vitscale.observe.dashboard.server import serve as start

    start(runs, host=host, port=port, token=token)
