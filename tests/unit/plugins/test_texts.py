"""Columns of texts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mal.plugins import texts as texts_module
from mal.plugins.texts import Texts, join


@pytest.mark.parametrize("compiled", [True, False])
@given(texts=st.lists(st.binary(max_size=40)), data=st.data())
def test_texts_are_put_together(compiled: bool, texts: list[bytes], data: st.DataObject) -> None:
    which = data.draw(st.lists(st.integers(0, len(texts) - 1)) if texts else st.just([]))
    with pytest.MonkeyPatch.context() as patch:
        if not compiled:
            patch.setattr(texts_module, "_body", lambda: texts_module._join_one_by_one)
        assert join(Texts.of(texts)) == b"".join(texts)
        assert join(Texts.of(texts).take(np.array(which, np.int64))) == b"".join(texts[at] for at in which)


def test_numbers() -> None:
    numbers = [0, 1, 9, 10, 99, 100, 2**31, 2**32 - 1, 10**9 - 1, 10**9]
    found = Texts.decimals(np.array(numbers, np.uint32))
    assert [join(found.take(slice(at, at + 1))) for at in range(len(numbers))] == [b"%d" % each for each in numbers]
