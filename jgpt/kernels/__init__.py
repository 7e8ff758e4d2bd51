"""Computations worth their own gradient: plain functions on arrays, each beside a plain twin.

A kernel folder holds the contract and the choice of backend (`__init__`), `reference.py` (the
specification, materialised) and the backends.
"""
