"""`eval "$(python -m mal.gstreamer)"`: lets gst-launch-1.0 find `malmask`."""

import os
import shlex
import sys
import sysconfig
from pathlib import Path

import mal


def environment() -> dict[str, list[str]]:
    """Folders that GStreamer's Python loader needs, by the variable that names them.

    The loader runs the system's Python, which knows neither this environment's packages nor an editable installation.
    """
    package = Path(mal.__file__).resolve().parent
    return {
        "GST_PLUGIN_PATH": [str(package / "gstreamer")],
        "PYTHONPATH": list(dict.fromkeys([str(package.parent), sysconfig.get_paths()["purelib"]])),
    }


def main() -> None:
    """Print the lines that a shell evaluates; what the variables hold already stays behind the new folders."""
    for name, folders in environment().items():
        before = [folder for folder in os.environ.get(name, "").split(os.pathsep) if folder and folder not in folders]
        print(f"export {name}={shlex.quote(os.pathsep.join(folders + before))}")
    print(
        f"# the loader's Python must be {sys.version_info.major}.{sys.version_info.minor}, as this one", file=sys.stderr
    )


if __name__ == "__main__":
    main()
