"""Trains a model of the Qwen3-VL architecture on both worlds from scratch, on one GPU within minutes."""
