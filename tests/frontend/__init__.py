"""Tests of the connection for frontend programs."""
