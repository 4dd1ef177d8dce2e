"""The page of runs, and its report."""

from pathlib import Path
from typing import Annotated

import typer

from vitscale.cli.app import RunArgument, app


@app.command()
def monitor(
    runs: Annotated[Path, typer.Argument(help="A folder of runs, or one run's.")] = Path("runs"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8420,
    host: Annotated[str, typer.Option(help="The address to listen at; other than loopback a token is asked for.")] = "127.0.0.1",
    token: Annotated[str | None, typer.Option(help="To be asked for; default: none on loopback, elsewhere one is made.")] = None,
    prometheus: Annotated[Path | None, typer.Option(metavar="DIR", help="Instead: write what Prometheus and Grafana want there.")] = None,
) -> None:
    """The dashboard of all runs under a folder, in a browser; or the files for Prometheus and Grafana."""
    if prometheus is not None:
        from vitscale.observe.prometheus_files import write_prometheus

        print("\n".join(write_prometheus(runs, prometheus)))
        return
    from vitscale.observe.dashboard import serve

    serve(runs, host=host, port=port, token=token)


@app.command()
def report(
    run: RunArgument,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Default: report.html in the run folder.")] = None,
) -> None:
    """Write a run's page as one file that needs neither server nor network."""
    from vitscale.observe.report import write_report
    from vitscale.runfolder import find_run

    print(f"wrote {write_report(find_run(run), out)}")
