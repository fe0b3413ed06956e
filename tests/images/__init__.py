"""Processed screenshots in shared memory."""
