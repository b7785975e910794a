"""The bench's two ways to put questions in order agree, so that its times mean something."""

from __future__ import annotations

import pytest

from bench.orders import KINDS, PAPER, agree, questions


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strategy", PAPER)
def test_ours_and_pandas_agree(strategy: str, kind: str) -> None:
    assert agree(strategy, questions(kind, 5_000))
