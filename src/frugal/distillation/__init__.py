"""A trained network teaches another: by its probabilities (`soft_targets`) or by what goes on inside it (`hidden`)."""
