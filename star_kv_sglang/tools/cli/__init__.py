"""The subcommands of `star-kv` that come with the extra `tools`."""
