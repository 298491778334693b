"""`pruning=`: which weights, neurons, channels or heads a network can do without."""
