"""Compiling once, and again when anything that made the library changed."""

import ctypes
from pathlib import Path

import pytest

from mal.errors import MissingPackageError
from mal.plugins.compile import Recipe, cache_folder, find_compiler, find_nvcc


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "answer.h").write_text("#define ANSWER 42\n")
    file = tmp_path / "answer.cpp"
    file.write_text('#include "answer.h"\nextern "C" int answer() { return ANSWER; }\n')
    return file


def build(source: Path, *flags: str, key: str = "") -> Path:
    try:
        compiler = find_compiler()
    except MissingPackageError as error:
        pytest.skip(str(error))
    recipe = Recipe("answer", (compiler, "-fPIC", *flags), (source,), (source.with_name("answer.h"),), key)
    return recipe.build(source.parent / "cache")


def test_a_library_comes_out_and_nothing_else(source: Path) -> None:
    library = build(source)
    assert ctypes.CDLL(str(library)).answer() == 42
    assert list(library.parent.iterdir()) == [library]


def test_the_cache_holds_it(source: Path) -> None:
    library = build(source)
    before = library.stat().st_mtime_ns
    assert build(source) == library
    assert library.stat().st_mtime_ns == before


def test_whatever_made_it_is_in_its_name(source: Path) -> None:
    libraries = [build(source), build(source, "-O3"), build(source, key="another processor")]
    source.with_name("answer.h").write_text("#define ANSWER 43\n")
    libraries.append(build(source))
    source.write_text(source.read_text() + "\n")
    libraries.append(build(source))
    assert len(set(libraries)) == 5
    assert ctypes.CDLL(str(libraries[-1])).answer() == 43


def test_the_compilers_own_words_are_quoted(source: Path) -> None:
    source.write_text("int answer() { return nonsense; }\n")
    with pytest.raises(MissingPackageError, match=r"cannot compile answer: .*nonsense"):
        build(source)
    assert not list((source.parent / "cache").iterdir())


def test_a_folder_that_cannot_be_written(source: Path) -> None:
    (source.parent / "cache").write_text("a file in the way")
    with pytest.raises(MissingPackageError, match="cannot build answer in "):
        build(source)


@pytest.mark.parametrize(("variable", "find"), [("CXX", find_compiler), ("NVCC", find_nvcc)])
def test_a_wish_is_not_replaced(variable: str, find: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "no-such-compiler")
    with pytest.raises(MissingPackageError, match=variable):
        find()  # type: ignore[operator]


def test_cache_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "mal"
