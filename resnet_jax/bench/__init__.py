"""Measurements that anyone can repeat: what compilation costs, what a step costs."""
