"""Measurements inside trained networks: responses, lesions, paths, identity, landscape, depth."""
