"""The command line of each benchmark: what can be asked, and the columns of its table."""
