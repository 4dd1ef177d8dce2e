"""What cluster.yaml knows of the hardware that a plan is for."""

from dataclasses import replace
from pathlib import Path

from vitscale.cluster.site import Site, find_site
from vitscale.errors import ClusterError
from vitscale.plan.command import PlanOptions
from vitscale.plan.fleet import CPU, Fleet


def fleet_of(site: Site) -> Fleet | None:
    """None: the site does not name its GPU."""
    if not site.gpus_per_node:
        return Fleet(site.nodes, 1, CPU)
    return Fleet(site.nodes, site.gpus_per_node, site.gpu) if site.gpu else None


def with_site(options: PlanOptions, cluster: Path | None) -> PlanOptions:
    """Hardware and price from cluster.yaml where the command line does not say them.  Raises ClusterError."""
    site, source = find_site(cluster)
    if not options.on and options.gpu is None:
        fleet = fleet_of(site)
        if fleet is None or source is None:
            where = f"{source} names no gpu" if source else "there is no cluster.yaml"
            raise ClusterError(f"--on: say which hardware, such as --on 4x8xH200, or --on cpu ({where})")
        options = replace(options, on=str(fleet))
    return options if options.price is not None else replace(options, price=site.price_per_gpu_hour)
