"""Runs that are killed, hindered, or run for long; and the parts that make them survive it."""

from __future__ import annotations

import random
import sys

import pytest
from faults import FAULTS
from jobs import World

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="jobs are forked, and hindered by Linux")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_loses_nothing(world: World, name: str) -> None:
    assert FAULTS[name](world, random.Random(name)) == ""
