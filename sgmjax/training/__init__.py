"""Training: configuration, state, the compiled step, the loop, checkpoints and logs."""
