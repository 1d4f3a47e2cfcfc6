"""One small training loop, its objectives, its checkpoints."""
