import pytest

import kernels


@pytest.fixture(scope="session")
def native():
    """The module of the native backend, which the tests of this folder are about."""
    if "native" not in kernels.available_backends():
        pytest.skip("the native backend is not available here")
    from kernels.cpu import backend

    return backend
