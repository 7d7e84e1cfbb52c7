"""Training one model: configuration, step, run folder."""
