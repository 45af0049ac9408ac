"""Looking inside trained networks: what their layers answer, and what their shortcuts carry."""
