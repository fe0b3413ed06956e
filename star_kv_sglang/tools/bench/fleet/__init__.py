"""`star-kv bench fleet`: many agents at one server over HTTP, their screenshots as base64 PNG."""
