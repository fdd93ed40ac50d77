"""Recordings of toy size."""

from toy_fixtures import arm, person, robot, statistics, toy_root

__all__ = ["arm", "person", "robot", "statistics", "toy_root"]
