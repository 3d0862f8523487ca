"""Prose that can rot is checked: links lead somewhere, the tree is there, named commands and settings exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / "mal").rglob("*.md"),
    *ROOT.glob("benchmarks/**/*.md"),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    dead = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not dead


def test_the_tree_in_the_readme_is_the_package() -> None:
    tree = re.search(r"```\nmal/\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert tree
    drawn = sorted(line.split()[0] for line in tree[1].splitlines())
    package = [path for path in (ROOT / "mal").iterdir() if not path.name.startswith("_") and path.name != "py.typed"]
    assert drawn == sorted(path.name + "/" * path.is_dir() for path in package)


def test_the_readme_leads_to_every_page() -> None:
    readme = (ROOT / "README.md").read_text()
    assert not [page.name for page in (ROOT / "docs").glob("*.md") if f"](docs/{page.name})" not in readme]


def test_every_command_and_option_in_the_readme_exists() -> None:
    text = (ROOT / "README.md").read_text()
    uses = re.findall(r"^mal (\w+)([^#\n]*)", text, re.MULTILINE)
    assert uses
    for command, words in uses:
        run = subprocess.run(
            [sys.executable, "-m", "mal.cli", command, "--help"], capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, command
        for option in re.findall(r"(?<!\S)-{1,2}[a-z][\w-]*", words):
            assert re.search(rf"(?<![\w-]){option}\b", run.stdout), f"mal {command} has no {option}"


def test_make_targets_in_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_no_absolute_path_of_a_machine() -> None:
    """What is committed names no folder of the machine that it was written on."""
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    bad = re.compile(rb"/(?:work|root|home)/[a-z.]")
    found = [
        name
        for name in files
        if (ROOT / name).is_file()
        and Path(name).suffix in {".md", ".py", ".json", ".txt", ".toml", ".cu", ".cuh", ".cpp"}
        and bad.search((ROOT / name).read_bytes())
    ]
    assert not [name for name in found if name != "tests/test_docs.py"]
