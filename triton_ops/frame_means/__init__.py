"""Mean hidden state of each screenshot."""
