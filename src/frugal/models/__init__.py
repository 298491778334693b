"""Networks by name, and the LightningModules that train them. Neither knows any technique."""
