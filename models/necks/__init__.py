"""Networks that turn feature maps into better ones."""
