"""The compiled part of training: network, state, step, and how batches reach it."""
