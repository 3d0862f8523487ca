"""Compile for the CPU at installation, where a C++ compiler is: into the wheel, or for a checkout into the cache.

Without a compiler the wheel is pure Python, and NumPy does the same more slowly.
"""

import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelHook(BuildHookInterface):
    """Hatchling's hook for wheels and editable installations."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and tell hatchling what lies where."""
        if not sys.platform.startswith("linux"):
            return
        sys.path.insert(0, self.root)
        from mal.errors import MissingPackageError
        from mal.plugins.host_library import SHIPPED, build_host, build_portable

        self._scratch = tempfile.TemporaryDirectory()
        try:
            library = build_host() if version == "editable" else build_portable(Path(self._scratch.name))
        except MissingPackageError as error:
            self.app.display_warning(f"nothing is compiled for the CPU: {error}")
            return
        if version == "editable":
            return
        build_data["force_include"][str(library)] = f"mal/plugins/{SHIPPED}"
        build_data["pure_python"] = False
        # Any Python 3: the kernel is called through ctypes. Any machine with this C library or a newer one.
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Clean up."""
        if hasattr(self, "_scratch"):
            self._scratch.cleanup()
