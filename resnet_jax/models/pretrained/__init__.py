"""Foreign weights: names, layouts, inference of the network, reading and writing."""
