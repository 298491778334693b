"""How a sweep's jobs are chosen; Hydra finds the sweepers here."""
