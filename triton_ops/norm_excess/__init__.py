"""How much larger a token's norm is than the usual one of its screenshot."""
