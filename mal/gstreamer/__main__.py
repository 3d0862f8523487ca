"""`eval "$(python -m mal.gstreamer)"`: lets gst-launch-1.0 find `malmask`."""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import mal


def environment() -> dict[str, list[str]]:
    """Folders that GStreamer's Python loader needs, by the variable that names them.

    The loader runs the system's Python, which knows neither this environment's packages nor an editable installation.
    """
    package = Path(mal.__file__).resolve().parent
    folders = [str(package.parent), sysconfig.get_paths()["purelib"], *_binding()]
    return {"GST_PLUGIN_PATH": [str(package / "gstreamer")], "PYTHONPATH": list(dict.fromkeys(folders))}


def _binding() -> list[str]:
    """The system's folder of the binding: where a virtual environment is active, the loader does not look there."""
    python = shutil.which("python3", path=os.defpath)
    if python is None:
        return []
    code = "import gi, pathlib; print(pathlib.Path(gi.__file__).parents[1])"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([python, "-c", code], env=clean, capture_output=True, text=True, check=False)
    return [done.stdout.strip()] if done.returncode == 0 else []


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
