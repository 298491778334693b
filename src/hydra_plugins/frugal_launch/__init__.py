"""How a sweep's jobs are started; Hydra finds the launchers here."""
