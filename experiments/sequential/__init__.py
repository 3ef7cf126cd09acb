"""Learning one sample at a time: networks that grow, and the streams they see."""
