"""One lab for the tests of a file, named after this process so that parallel runs never meet."""

import os
from collections.abc import Iterator

import pytest

from lab import Lab, Site, require_netns


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    require_netns()
    Lab.sweep("hztest")
    with Lab(f"hztest-{os.getpid()}") as lab:
        yield lab


@pytest.fixture(scope="module")
def server(lab: Lab) -> Site:
    return lab.site("server")


@pytest.fixture(scope="module")
def alice(lab: Lab) -> Site:
    return lab.site("alice")


@pytest.fixture(scope="module")
def bob(lab: Lab) -> Site:
    """A host behind a NAT router."""
    return lab.site("bob", nat=True)
