"""Runs branches of a GUI agent against an OpenAI-compatible server and measures what they did to its KV pool."""
