"""Image classification sets through TensorFlow Datasets, read without TensorFlow."""
