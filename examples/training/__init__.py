"""Training on what was pruned: rollouts of a pruning engine, and a trainer that computes under its masks."""
