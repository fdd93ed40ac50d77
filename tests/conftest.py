"""Shared by all tests: devices, compilers, and run-time shape checks."""

import os
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch
from hypothesis import settings

settings.register_profile("house", derandomize=True, deadline=None)  # same cases on every machine, however busy
settings.load_profile("house")


@pytest.fixture(scope="session", autouse=True)
def without_waiting_for_the_disk() -> Iterator[None]:
    """Flushing to the disk takes most of the time of a save; what it is called for is tested where it is promised."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of recorded reference numbers."""
    return Path(__file__).parent / "golden"


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device the test runs on; CUDA is skipped where there is none."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


@pytest.fixture
def without_shape_checks() -> Iterator[None]:
    """`torch.compile(fullgraph=True)` cannot trace the run-time shape checker: switch it off for one test."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Forget what was compiled: a worker that compiles in many tests reaches the limit of recompilations."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
