"""The command line of each look inside a network: what can be asked, and what is shown of it."""
