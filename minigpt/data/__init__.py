"""What is learned from. What a flag begins with stands here, where nothing has to be loaded."""

SHARD_TOKENS = 100_000_000  # after which prepare begins another file
