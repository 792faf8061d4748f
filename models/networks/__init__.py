"""Whole networks, which do not come apart into backbone, necks and head."""
