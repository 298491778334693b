"""The miniature of MNIST's files, made once."""

from __future__ import annotations

import pytest
from data_standins import Mini


@pytest.fixture(scope="session")
def mini() -> Mini:
    return Mini()
