"""Weights of InternVLA-A1 from files and into files."""
