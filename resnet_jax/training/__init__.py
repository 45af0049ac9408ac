"""Training as a pure function of an experiment and a seed."""
