"""A real browser for rollouts: MiniWoB++'s pages in Chromium, and an agent that plays them by script."""
