"""Fleets that nobody has at hand: a discrete-event simulation whose costs were measured."""
