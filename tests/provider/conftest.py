"""One stand-in for all tests of it; each test finds it as new."""

from dataclasses import asdict

import pytest
from provider_settings import Settings
from running import provider


@pytest.fixture(scope="session")
def _stand_in():
    with provider() as it:
        yield it


@pytest.fixture
def it(_stand_in):
    _stand_in.control(reset=True, **asdict(Settings()))
    return _stand_in
