"""One file a dataset; importing `dataloader` registers them all."""
