"""The data room: sources (numpy arrays, no torch), preprocessing, batch order, and the one LightningDataModule."""
