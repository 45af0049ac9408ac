"""The same networks in other frameworks, as whole training steps, to be timed beside ours where their packages are installed."""
