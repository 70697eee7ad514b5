"""The sampler: collectors, the background daemon, its socket, and running a command under it."""
