"""Networks as files for other programs: written, compared with the checkpoint, and read again."""
