"""What a server with ``--kv-introspection`` shows of its tree: the process that answers clients asks the scheduler."""
