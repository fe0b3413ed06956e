"""Draws what a policy kept, and writes it into a page."""
