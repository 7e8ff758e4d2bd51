"""One training step for every objective, and the loop, checkpoints and reports around it."""
