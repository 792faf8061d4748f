"""What prepare.py does; nothing here is needed for training."""
