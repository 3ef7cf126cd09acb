"""What is compiled: network, state, step, and how batches reach it."""
