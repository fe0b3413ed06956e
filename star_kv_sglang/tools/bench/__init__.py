"""Measurements: each module one kind, all of them gated by the tests of what they measure."""
