"""For hatchling: the native decoder goes into the wheel where it can be compiled; where it cannot, the wheel goes without, and says so."""

import runpy
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_FOLDER = "vitscale/data/native"


class NativeDecoder(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        built = runpy.run_path(str(Path(self.root) / _FOLDER / "build.py"))
        if why := built["build"]():
            self.app.display_info(f"vitscale goes without its native JPEG decoder: {why}")
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"cp311-abi3-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
        build_data["artifacts"].append(f"{_FOLDER}/{built['NAME']}")
