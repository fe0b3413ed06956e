"""Agents for rollouts that do what their model says."""
