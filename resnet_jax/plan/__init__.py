"""Plans: what a training step would need and move on machines that are not there."""
