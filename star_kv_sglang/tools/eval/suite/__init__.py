"""The small GUI suite: KV policies against each other on trajectories, on an engine that this command starts itself.

Read in this order: `questions` (what is asked), `variants` (policies, ablations), `prompts` and `play` (the two
protocols), `served` (the engine), `worker` (one engine's cells), `conduct` (all engines), `tables` and `page`
(results).
"""
