"""Accuracy of a served model on GUI benchmarks, and what a KV policy costs of it.

Read in this order: `samples` (what a benchmark is made of), `benchmarks` (loaders and metrics), `families` (prompts and
action parsers of models), `conversation` (a step as chat messages), `runner` (against a server), `statistics` and
`report` (what it means).
"""
