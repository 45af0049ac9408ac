"""Weights that others trained: their names and layouts, what they leave unsaid, and the way back."""
